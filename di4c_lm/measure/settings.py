"""The settings that all measurements of a run share."""

from pathlib import Path
from typing import Literal

from di4c_lm.core.settings import Ints, at_least, check, section, setting


@section
class Measurement:
    """Which run, how many samples of how many steps, and where the report goes."""

    run: str | None = setting(None, "a run's folder; null: the newest under `outputs` that has a student")
    outputs: str = setting("outputs", "the folder that holds the runs")
    report: str | None = setting(None, "folder to write the report to; null: <run>/report")
    steps: Ints = setting((1, 2, 4, 8, 16), "numbers of sampling steps that are compared")
    num_samples: int = setting(256, "samples for each model and number of steps")
    batch_size: int = setting(64, "samples in a batch")
    bootstrap: int = setting(1000, "bootstrap resamples for each 95 % interval")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where the models run; auto: a GPU if there is one")

    def __post_init__(self) -> None:
        distinct(self, 1, "steps")
        at_least(self, 1, "batch_size", "bootstrap")

    def folder(self, run: Path) -> Path:
        """Where the report on a run goes."""
        return Path(self.report) if self.report else run / "report"


def distinct(owner: object, low: int, *names: str) -> None:
    """Raise `SettingError` unless each of these fields holds one or more distinct numbers of at least `low`."""
    for name in names:
        value = getattr(owner, name)
        ok = len(value) > 0 and min(value) >= low and len(set(value)) == len(value)
        check(ok, name, value, f"one or more distinct numbers of at least {low}")


def device_of(wanted: str) -> str:
    """cpu or cuda, by `auto`, `cpu` or `cuda`. Raises `ValueError` for a GPU that is not there."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be auto or cpu where no GPU is visible, got 'cuda'")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
