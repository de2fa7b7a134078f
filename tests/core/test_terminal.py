"""How scripts end: one line and a status, whatever went wrong."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from di4c_lm.core.terminal import RunError, errors_end, fail, message_of, progress_bar


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
    for _ in progress_bar(range(100), desc="work"):
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
