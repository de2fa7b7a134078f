"""The deliberate errors stand where they say, and the tool tells one that is noticed from one that is not."""

from pathlib import Path

import pytest

from tools.mutants import ROOT, Mutant, is_noticed, load_mutants

MUTANTS = load_mutants()


def test_there_are_at_least_sixty_of_different_names() -> None:
    assert len(MUTANTS) >= 60 and len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_error_still_applies(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.applied(text) != text
    assert all((ROOT / part.split("::")[0]).exists() for part in mutant.tests.split())


@pytest.mark.parametrize("old, noticed", [("a + b", True), ("a nice sum", False)])
def test_an_error_is_noticed_where_a_test_fails(old: str, *, noticed: bool, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").touch()  # as in the checkout, whose own `tools` would go first otherwise
    (tmp_path / "tools" / "sums.py").write_text('"""a nice sum"""\n\n\ndef add(a, b):\n    return a + b\n')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_sums.py").write_text(
        "from tools.sums import add\n\n\ndef test_add():\n    assert add(2, 3) == 5\n"
    )
    mutant = Mutant(name="x", file="tools/sums.py", old=old, new="a - b", tests="tests/test_sums.py")
    assert is_noticed(mutant, tmp_path) == noticed
    if not noticed:
        (tmp_path / "tests" / "test_gone.py").write_text("import tools.gone\n")
        assert is_noticed(None, tmp_path, "tests/test_gone.py") and not is_noticed(None, tmp_path, mutant.tests)


def test_an_error_that_does_not_apply_is_named() -> None:
    mutant = Mutant(name="gone", file="a.py", old="x", new="y", tests="tests")
    with pytest.raises(ValueError, match="gone: a.py must hold 'x' once, it does 2 times"):
        mutant.applied("xx")
