"""How any run trains: where it lives, the optimiser, the loop, ZeRO, and how a teacher or evaluator is trained before it."""

import math
import os
from pathlib import Path
from typing import Literal

from di4c_lm.core.settings import Pair, at_least, check, positive, section, setting


@section
class RunConfig:
    """Where a run lives."""

    name: str | None = setting(None, "null: one made from the hash of the settings")
    dir: str | None = setting(None, "null: outputs/<name>")
    cache_dir: str | None = setting(None, "trained teachers and evaluators; null: $DI4C_CACHE, else ~/.cache/di4c_lm")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: cuda where there is one")
    threads: int = setting(0, "CPU threads a rank; 0: cores divided among the ranks of the node")

    def __post_init__(self) -> None:
        at_least(self, 0, "threads")

    @property
    def cache(self) -> Path:
        """Where trained teachers and evaluators are kept."""
        return Path(self.cache_dir or os.environ.get("DI4C_CACHE") or Path.home() / ".cache" / "di4c_lm")


@section
class OptimConfig:
    """AdamW with linear warm-up, clipping by global norm, and an exponential moving average of the weights."""

    lr: float = setting(1e-3, "learning rate after the warm-up")
    betas: Pair = setting((0.9, 0.999), "decay of the two moments")
    eps: float = setting(1e-8, "added to the root of the second moment")
    weight_decay: float = setting(0.0, "an update, times lr")
    warmup_steps: int = setting(50, "updates")
    schedule: Literal["constant", "cosine"] = setting("constant", "after the warm-up; cosine ends at a tenth of lr")
    clip_norm: float = setting(1.0, "largest norm of a gradient")
    ema_decay: float = setting(0.9999, "of the moving average that is exported")
    mixture_lr_scale: float = setting(1.0, "factor on lr for the parameters of λ")

    def __post_init__(self) -> None:
        positive(self, "lr", "eps", "clip_norm", "mixture_lr_scale")
        at_least(self, 0, "weight_decay", "warmup_steps")
        check(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two values in [0, 1)")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Learning rate of update number `step` (from 0) of `total_steps`: nothing to save, nothing to resume.

        Linear from lr/warmup_steps to lr over the warm-up; then lr, or half a cosine down to lr/10 at the last update.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup_steps) / max(1, total_steps - 1 - self.warmup_steps)
        low = self.lr / 10
        return low + (self.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@section
class TrainConfig:
    """The loop: how many updates, of how many sequences, and what is kept."""

    steps: int = setting(1000, "updates")
    seed: int = setting(0, "of weights, data order and noise")
    micro_batch_size: int = setting(8, "sequences a rank and forward pass")
    gradient_accumulation: int = setting(1, "forward passes an update")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "of the networks; the optimiser has float32")
    activation_checkpointing: bool = setting(False, "less memory, more time")
    save_every: int = setting(500, "updates; 0: only at the end", identity=False)
    keep_checkpoints: int = setting(2, "the last so many", identity=False)
    resume: Literal["auto", "never", "must"] = setting("auto", "from the last checkpoint", identity=False)
    log_every: int = setting(10, "updates", identity=False)
    max_bad_steps: int = setting(
        10, "updates in a row without a finite loss or gradient that end a run", identity=False
    )
    rank_timeout_s: int | float = setting(
        600, "a rank that hangs so long ends the run, by name; 0: never", identity=False
    )
    reset_optimizer: bool = setting(True, "in a chain of rounds: false keeps the moments of the round before")

    def __post_init__(self) -> None:
        at_least(self, 0, "seed", "save_every", "rank_timeout_s")
        at_least(self, 1, "steps", "micro_batch_size", "gradient_accumulation")
        at_least(self, 1, "keep_checkpoints", "log_every", "max_bad_steps")


@section
class ZeroConfig:
    """DeepSpeed ZeRO."""

    stage: Literal[0, 1, 2, 3] = setting(0, "what the ranks share out: 1 optimiser, 2 and gradients, 3 and weights")
    offload: bool = setting(False, "keep the optimiser in CPU memory")
    config: str | None = setting(None, "a DeepSpeed JSON, merged with ours after a check for contradictions")

    def __post_init__(self) -> None:
        check(not (self.offload and self.stage == 0), "offload", self.offload, "false at stage 0")


@section
class PretrainConfig:
    """How it is trained where none is given."""

    steps: int = setting(1500, "updates")
    batch_size: int = setting(32, "sequences an update, over all ranks")
    lr: float = setting(1e-3, "learning rate after the warm-up")
    seed: int = setting(0, "of its weights, data order and noise")

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size")
        positive(self, "lr")
        at_least(self, 0, "seed")


@section
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = setting("disabled", "offline: kept in the run's folder")
    project: str = setting("di4c-lm", "where the run is shown")
    entity: str | None = setting(None, "its owner; null: your own")

    def unused(self) -> dict[str, str]:
        """Where a run would be shown."""
        return dict.fromkeys(("project", "entity") if self.mode == "disabled" else (), "where wandb.mode=disabled")
