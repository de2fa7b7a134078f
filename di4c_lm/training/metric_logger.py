"""What a run tells its user: `metrics.jsonl`, a progress bar, Weights & Biases, TensorBoard. Rank 0 only."""

import importlib.util
import json
import logging
import math
import netrc
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from di4c_lm.core.files import write_text
from di4c_lm.core.terminal import not_installed, progress_bar
from di4c_lm.training.distributed import is_main
from di4c_lm.training.settings import TensorboardConfig, WandbConfig

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"  # in a run's folder
_WANDB_SECONDS = 30.0  # that its server may take to answer


def check_wandb(config: WandbConfig) -> None:
    """Raise `ValueError` where runs are to be shown online and there is no key for it."""
    if _wandb_mode(config) == "online" and not _wandb_key():
        raise ValueError(
            "wandb.mode must be offline or disabled where there is no key (`wandb login`, $WANDB_API_KEY), got 'online'"
        )


def check_tensorboard(config: TensorboardConfig) -> None:
    """Raise `ValueError` where curves are to be written for TensorBoard and its package is absent."""
    if config.enabled and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(f"tensorboard.enabled must be false, got true: {not_installed('tensorboard')}")


class MetricLogger:
    """One JSON object a logged step in `<run_dir>/metrics.jsonl`, and the bar. A context manager; silent on ranks other than 0.

    Opened on a resumed run it drops the lines beyond `step`, so that the file reads like that of an unbroken run.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        step: int,
        total_steps: int,
        log_every: int,
        wandb: WandbConfig | None = None,
        tensorboard: TensorboardConfig | None = None,
        label: str = "train",
        settings: dict[str, Any] | None = None,
    ) -> None:
        self._path = run_dir / METRICS
        self._first, self._total, self._log_every = step, total_steps, log_every
        self._wandb_config = wandb if wandb is not None else WandbConfig()
        self._tensorboard_config = tensorboard if tensorboard is not None else TensorboardConfig()
        self._label = label
        self._settings = settings or {}
        self._tokens = 0
        self._since = 0.0
        self._file: Any = None
        self._bar: Any = None
        self._wandb: Any = None
        self._tensorboard: Any = None

    def __enter__(self) -> "MetricLogger":
        if is_main():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_after(self._path, self._first)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
            self._bar = progress_bar(
                total=self._total,
                initial=self._first,
                desc=self._label,
                unit="step",
            )
            if self._wandb_config.mode != "disabled":
                self._wandb = self._start_wandb()
            if self._tensorboard_config.enabled:
                self._tensorboard = self._start_tensorboard()
        self._since = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error[0] is None else 1)
        if self._tensorboard is not None:
            self._tensorboard.close()

    def record(self, step: int, tokens: int, values: Mapping[str, float | int]) -> None:
        """Step number `step` (from 1) is done: it took `tokens` tokens over all ranks, and `values` came of it."""
        self._tokens += tokens
        if self._file is None:
            return
        self._bar.update(1)
        if step % self._log_every and step not in (1, self._total):
            return
        now = time.perf_counter()
        speed = self._tokens / max(now - self._since, 1e-9)
        self._since, self._tokens = now, 0
        line = {"step": step, **values, "tokens_per_s": speed}
        self._file.write(json.dumps({key: _plain(value) for key, value in line.items()}) + "\n")
        self._bar.set_postfix_str(f"loss {values.get('loss', math.nan):.4g}, {speed:.3g} tokens/s", refresh=False)
        if self._wandb is not None:
            self._wandb.log(line, step=step)
        if self._tensorboard is not None:
            for key, value in line.items():
                if key != "step":
                    self._tensorboard.add_scalar(key, value, step)

    def _start_tensorboard(self) -> Any:
        """What it has of steps that are done again is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._path.parent / "tensorboard", purge_step=self._first + 1)

    def _start_wandb(self) -> Any:
        import wandb

        chosen = self._wandb_config
        try:
            return wandb.init(
                project=chosen.project,
                entity=chosen.entity,
                mode=_wandb_mode(chosen),
                dir=str(self._path.parent),
                name=self._path.parent.name,
                id=_wandb_id(self._path.parent),
                resume="allow",
                config=self._settings,
                settings=wandb.Settings(init_timeout=_WANDB_SECONDS),
            )
        except wandb.Error as error:
            raise ValueError(f"wandb.mode={chosen.mode}: {error}; wandb.mode=offline needs no server") from error


def _wandb_mode(config: WandbConfig) -> Literal["online", "offline", "disabled"]:
    """As the settings say; $WANDB_MODE may ask for less."""
    asked = os.environ.get("WANDB_MODE", "")
    if config.mode != "disabled" and (asked == "offline" or asked == "disabled"):
        return asked
    return config.mode


def _wandb_key() -> bool:
    """Whether there is one where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _plain(value: float | int) -> float | int | None:
    """JSON has no NaN: null stands for what is not finite."""
    return value if math.isfinite(value) else None


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The logged steps of a run; none where it has not trained anything."""
    path = run_dir / METRICS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines of steps up to `step`; a line cut short by a kill goes too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            logger.warning("dropped a broken line of %s: %r", path, line[:80])
            continue
        if entry["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _wandb_id(run_dir: Path) -> str:
    """The run's id at Weights & Biases, kept in its folder so that a resumed run goes on in the same curves."""
    path = run_dir / "wandb_id.txt"
    if not path.is_file():
        write_text(path, secrets.token_hex(4))
    return path.read_text(encoding="utf-8").strip()
