"""The list of bad input, and that the tool which runs it can fail."""

from pathlib import Path

import pytest

from tools.bad_input import Case, attempt, load_cases


def test_the_list_is_long_and_names_what_is_promised() -> None:
    cases = load_cases()
    assert len(cases) >= 150
    assert all(case.says or case.status == 0 for case in cases if case.status == 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without inputs: the cases here need none."""
    path = tmp_path_factory.mktemp("bad")
    (path / "inputs").mkdir()
    (path / "inputs are made").touch()
    return path


def test_a_case_that_answers_as_promised(folder: Path) -> None:
    assert attempt(Case(name="a", run="tools/sample.py steps=0", says=("steps", "0")), folder) == ""


@pytest.mark.parametrize(
    "case, problem",
    [
        (Case(name="b", run="tools/sample.py steps=0", says=("length",)), "'length' is not said"),
        (Case(name="c", run="tools/sample.py steps=0", status=0), "status 2, promised 0"),
        (Case(name="d", run="tools/sample.py --help", says=("x",)), "the last line is no error"),
        (Case(name="e", run="tools/nonesuch.py", status=1), "a traceback"),
        (Case(name="f", run="tools/sample.py --help", status=0, silent=("show_steps",)), "it came to 'show_steps'"),
    ],
)
def test_a_case_that_does_not_is_said_to_fail(folder: Path, case: Case, problem: str) -> None:
    assert problem in attempt(case, folder)


def test_a_change_of_what_is_untouched_is_seen(folder: Path) -> None:
    case = Case(name="g", run="tools/sample.py steps=0", says=("steps",), untouched="stderr")
    assert "stderr has changed" in attempt(case, folder)
