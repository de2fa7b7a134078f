"""Which run an evaluation is about."""

from pathlib import Path


def find_run(run: str | None, outputs: str) -> Path:
    """The folder `run`, or the newest under `outputs` that has exported a student.

    Raises `ValueError` that names the folder and what was expected in it.
    """
    if run is not None:
        if not _exported(Path(run)).is_file():
            raise ValueError(f"run={run!r}: expected a run's folder with student/model.safetensors; there is none")
        return Path(run)
    runs = [folder for folder in Path(outputs).glob("*") if _exported(folder).is_file()]
    if not runs:
        raise ValueError(
            f"outputs={outputs!r} holds no finished run (a folder with student/model.safetensors): "
            "make one with `deepspeed launch/train_lm.py`, or name one with run=<folder>"
        )
    return max(runs, key=lambda folder: _exported(folder).stat().st_mtime)


def _exported(run: Path) -> Path:
    return run / "student" / "model.safetensors"
