"""The folder of a run: its name, the settings that it was begun with, and its lock."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from di4c_lm.core.compose import CONFIGS, Override, compose, compose_rounds, overrides_of, parse
from di4c_lm.core.files import lock, write_text
from di4c_lm.core.settings import identity, run_hash, to_dict
from di4c_lm.core.terminal import errors_end, log_to_file
from di4c_lm.domains.domain import PARTS, SETTINGS, STUDENT, Domain, read_settings
from di4c_lm.training.distributed import World
from di4c_lm.training.run_state import snapshots

CHECKPOINTS, REPORT, LOG = "checkpoints", "report", "run.log"
_PATHS = ("path", "tokenizer", "config")  # keys, below any section, that may say a path
# What may change where a run resumes: its length, and how the same work is shared out.
_RESUMABLE = {"rounds", "train.steps", "train.micro_batch_size", "train.gradient_accumulation"}


def compose_run(domain: Domain, overrides: Sequence[Override]) -> tuple[Any, list[Any]]:
    """The settings of a run, and those of its rounds. Raises `ValueError` as `compose` does."""
    settings = compose(domain.settings, overrides, CONFIGS, domain.name)
    return settings, compose_rounds(settings, overrides, CONFIGS, domain.name, run_dir(domain, settings))


def parse_run(domain: Domain, argv: Sequence[str], *, program: str) -> tuple[Any, list[Any]]:
    """The settings of a run from its command line, and those of its rounds. `--help` and bad input end the program."""
    parse(domain.settings, argv, CONFIGS, domain.name, program=program)
    with errors_end():
        return compose_run(domain, overrides_of(argv))


def run_dir(domain: Domain, settings: Any) -> Path:
    """`run.dir`, else `outputs/<run.name>`, where an absent name is `<domain>-<hash of the settings>`."""
    run = settings.run
    return Path(run.dir or Path("outputs") / (run.name or f"{domain.name}-{run_hash(settings)}"))


def is_finished(folder: Path, *, reported: bool) -> bool:
    """Whether the folder holds a trained student and, where it is to be `reported`, its report."""
    exported = (folder / STUDENT / "model.safetensors").is_file() and (folder / PARTS).is_file()
    return exported and (not reported or any((folder / REPORT).glob("*.json")))


def check_settings(domain: Domain, settings: Any, folder: Path, *, rounds: bool = False) -> None:
    """Raise `ValueError`, naming the keys, where `folder` holds a run that was trained under other settings; nothing is written.

    Of `rounds` those that are finished may not be made longer, since others have learned from them.
    """
    steps = max((int(path.name.partition("_")[2]) for path in snapshots(folder / CHECKPOINTS)), default=0)
    if not (folder / SETTINGS).is_file() or (steps == 0 and not (folder / STUDENT).exists()):
        return
    there, here = (_leaves(located(identity(one))) for one in (read_settings(domain, folder), settings))
    free = _RESUMABLE - ({"train.steps"} if rounds and is_finished(folder, reported=False) else set())
    differing = [
        f"{key}={json.dumps(there.get(key))} there, {json.dumps(here.get(key))} here"
        for key in {**there, **here}
        if there.get(key) != here.get(key) and not {key, key.partition(".")[0]} & free
    ]
    if differing:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(differing)}. Choose another run.dir or run.name"
        )
    if steps > settings.train.steps:
        raise ValueError(
            f"train.steps must be at least {steps}, where the run in {folder} stands, got {settings.train.steps}"
        )


@contextmanager
def opened(domain: Domain, settings: Any, folder: Path, world: World) -> Iterator[None]:
    """Hold `folder` for this run alone, with its settings in it; what is said within goes to its log too. All ranks call it.

    Raises `ValueError` where it holds a run of other settings, another process is at work in it, or it cannot be written.
    """
    with ExitStack() as held:

        def take() -> None:
            check_settings(domain, settings, folder)
            try:
                held.enter_context(lock(folder / ".lock", f"training {folder}", wait_s=0))
                check_settings(domain, settings, folder)
                write_settings(folder, settings)
                held.enter_context(log_to_file(folder / LOG))
            except OSError as error:
                raise ValueError(f"run.dir: {folder} cannot be written: {error.strerror or error}") from error

        world.on_main(take)
        yield


def located(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, the paths of what is here absolute and without links, so that the run is measured from any folder alike."""
    found = {}
    for key, value in plain.items():
        if isinstance(value, Mapping):
            value = located(value)
        elif key in _PATHS and isinstance(value, str):
            parts = [value] if Path(value).expanduser().exists() else value.split(",")
            value = ",".join(_absolute(part) for part in parts)
        found[key] = value
    return found


def _absolute(path: str) -> str:
    here = Path(path).expanduser()
    return path if "://" in path or not path or not here.exists() else str(here.resolve())


def write_settings(folder: Path, settings: Any) -> None:
    """The whole configuration as YAML."""
    import yaml

    plain = json.loads(json.dumps(located(to_dict(settings))))
    write_text(folder / SETTINGS, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))


def _leaves(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(plain)).items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
