"""Which run is meant where one is named, or none."""

import os
from pathlib import Path

import pytest

from di4c_lm.domains.domain import find_run


def make(folder: Path, age: float) -> Path:
    weights = folder / "student" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    os.utime(weights, (1e9 - age, 1e9 - age))
    return folder


def test_the_newest_finished_run_is_chosen(tmp_path: Path) -> None:
    make(tmp_path / "old", age=100)
    newest = make(tmp_path / "new", age=1)
    (tmp_path / "unfinished").mkdir()
    assert find_run(None, str(tmp_path)) == newest
    assert find_run(str(tmp_path / "old"), str(tmp_path)) == tmp_path / "old"


def test_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match=f"outputs='{tmp_path}' holds no finished run"):
        find_run(None, str(tmp_path))
    with pytest.raises(ValueError, match="run='.*unfinished': expected a run's folder"):
        find_run(str(tmp_path / "unfinished"), str(tmp_path))
