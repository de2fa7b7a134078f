"""How scripts end: one line and a status, whatever went wrong."""

import errno
import io
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.core.terminal import (
    Interrupted,
    RunError,
    Stages,
    errors_end,
    fail,
    log_to_file,
    message_of,
    progress_bar,
)


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("data.path: nothing there"), "data.path: nothing there"),
        (ValueError("first line:\n  a\n  b\n"), "first line: a; b"),
        (ConnectionError("the hub did not answer"), "the hub did not answer"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x/y"), "x/y: No such file or directory"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "x: No space left on device; make room there"),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            "x: Permission denied; choose a place that you may use",
        ),
        (RunError("10 steps in a row"), "10 steps in a row"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: DefaultCPUAllocator"),
    ],
)
def test_a_foreseen_error_is_one_line_and_status_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, errors_end():
        raise error
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith(f"error: {line}") and said.count("\n") == 1


def test_an_error_that_nobody_foresaw_keeps_its_traceback() -> None:
    for error in (KeyError("x"), RuntimeError("size mismatch"), AssertionError()):
        with pytest.raises(type(error)), errors_end():
            raise error


def test_ctrl_c_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, errors_end():
        raise KeyboardInterrupt
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_an_error_without_a_word_is_called_by_its_kind() -> None:
    assert message_of(ValueError()) == "ValueError"


def test_a_message_fits_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail("a\n\n  b,\n c")
    assert capsys.readouterr().err == "error: a; b, c\n"


def test_a_bar_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = progress_bar(range(100), desc="work")
    for number in bar:
        bar.set_postfix_str(f"at {number}")
        for _ in progress_bar(range(2), desc="inner", leave=False):
            pass
    said = capsys.readouterr().err
    assert "inner" not in said
    assert "\r" not in said and "work: 100%" in said and said.count("\n") <= 3


def test_letters_that_the_terminal_lacks_are_no_error() -> None:
    code = "from di4c_lm.core.terminal import say_all_letters; say_all_letters(); print('λ')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"\\u03bb\n"


def file_of(path: Path) -> list[str]:
    """The lines of a log without their times."""
    return [line.split(" ", 2)[2] for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_log_file_has_the_lines_of_the_terminal_and_is_appended_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        with log_to_file(tmp_path / "run.log"):
            logging.getLogger("di4c_lm.runs").info("run %d", number)
            for _ in progress_bar(range(100), desc="work"):
                for _ in progress_bar(range(2), desc="inner", leave=False):
                    pass
    logging.getLogger("di4c_lm.runs").warning("afterwards")
    said, logged = capsys.readouterr().err, file_of(tmp_path / "run.log")
    assert [line for line in logged if line.startswith("run")] == ["run 1", "run 2"]
    shown = [line.partition(" [")[0] for line in said.splitlines() if line.startswith("work")]
    assert [line.partition(" [")[0] for line in logged if line.startswith("work")] == shown and len(shown) == 4
    assert "afterwards" not in logged and not any("inner" in line for line in logged)


def test_a_log_file_has_the_lines_of_a_bar_that_a_terminal_redraws(tmp_path: Path, monkeypatch: Any) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with log_to_file(tmp_path / "run.log"):
        for _ in progress_bar(range(100), desc="work", mininterval=0.0):
            pass
    assert "\rwork" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    first, last = file_of(tmp_path / "run.log")
    assert first.startswith("work:   0%") and last.startswith("work: 100%") and "it/s" in last and "\r" not in last


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("x must be 1,\n got 2"), "error: x must be 1, got 2"),
        (Interrupted(15), "error: interrupted by signal 15"),
        (KeyError("x"), "ended by KeyError"),
    ],
)
def test_a_log_file_says_what_ended_the_work(error: Exception, line: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), log_to_file(tmp_path / "run.log"):
        raise error
    text = (tmp_path / "run.log").read_text()
    assert line in text and ("Traceback" in text) == isinstance(error, KeyError)


def test_a_log_that_cannot_be_written_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with log_to_file(Path("/dev/full")):
        logging.getLogger("di4c_lm").warning("still here")
    assert "Traceback" not in capsys.readouterr().err


def test_stages_are_counted_and_timed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stages = Stages("data", "training")
    stages.begin("data")
    stages.begin("training", "di4c", "20 updates")
    stages.end()
    assert caplog.messages == [
        "stage 1 of 2: data",
        "stage 2 of 2: training, di4c, 20 updates (data took 00:00)",
        "all 2 stages are done (training took 00:00)",
    ]


def test_a_notebook_shows_a_bar_of_its_own_and_the_log_its_lines(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    pytest.importorskip("ipywidgets")
    code = f"""
import pathlib
from di4c_lm.core.terminal import log_to_file, progress_bar
with log_to_file(pathlib.Path({str(tmp_path / "run.log")!r})):
    for _ in progress_bar(range(3), desc="work"):
        pass
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (shown,) = [one for one in notebook.cells[0].outputs if "application/vnd.jupyter.widget-view+json" in one.data]
    assert "work" in shown.data["text/plain"]
    assert file_of(tmp_path / "run.log")[-1].startswith("work: 100%")
