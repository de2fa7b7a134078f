"""The notebooks run from the top, quickly, and are kept with what they print."""

import os
from itertools import groupby
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import nbformat

from tools.docs.notebooks import NOTEBOOKS, executed

SECONDS = 120  # of the process's own time, so that a busy machine changes nothing


def kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Of each cell of code, the kinds of its outputs, one after the other; of a slow cell a kernel may send one output in parts."""
    of_cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [[kind for kind, _ in groupby(one.output_type for one in outputs)] for outputs in of_cells]


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_it_runs_and_is_kept_with_its_outputs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parents[1]))
    monkeypatch.setenv("DI4C_CACHE", str(tmp_path / "cache"))  # nothing is trained before
    before = children_seconds()
    ran = executed(path, tmp_path)
    assert children_seconds() - before < SECONDS
    assert kinds(ran) == kinds(nbformat.read(path, as_version=4))
    assert sum(bool(outputs) for outputs in kinds(ran)) >= 6


def children_seconds() -> float:
    """CPU seconds of ended child processes: a kernel is one."""
    times = os.times()
    return times.children_user + times.children_system


def test_a_cell_that_fails_is_noticed(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(notebook, tmp_path / "bad.ipynb")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        executed(tmp_path / "bad.ipynb", tmp_path)
