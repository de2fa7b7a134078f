"""CONTRIBUTING.md's sampler, added to a copy of the repository as it says, works and passes the tests and the style checks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^```(python|diff) title="(.+?)"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
TESTS = ("tests/samplers/test_outside_in.py", "tests/samplers/test_registry.py")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in ("di4c_lm", "tests", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for kind, name, text in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        path = folder / name
        path.write_text(patched(path.read_text(encoding="utf-8"), text) if kind == "diff" else text, encoding="utf-8")
    return folder


def patched(text: str, diff: str) -> str:
    """The text with each line that `diff` adds behind the line before it there, which the text must have."""
    before = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            assert text.count(f"{before}\n") == 1, before
            text = text.replace(f"{before}\n", f"{before}\n{line[1:]}\n")
        before = line[1:]
    return text


def run_tests(folder: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """pytest in `folder`, on its own copy of the package."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )


def test_the_walkthrough_has_a_sampler_a_registry_and_tests() -> None:
    blocks = [(kind, name) for kind, name, _ in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))]
    assert blocks == [
        ("python", "di4c_lm/samplers/outside_in.py"),
        ("diff", "di4c_lm/samplers/registry.py"),
        ("python", TESTS[0]),
    ]


def test_its_tests_pass(copy: Path) -> None:
    ran = run_tests(copy, *TESTS)
    assert ran.returncode == 0, ran.stdout[-3000:]


def test_a_sampler_that_reveals_the_wrong_end_is_noticed(copy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(copy, broken)
    path = broken / "di4c_lm/samplers/outside_in.py"
    path.write_text(path.read_text(encoding="utf-8").replace("place_D < torch", "place_D >= torch"), encoding="utf-8")
    ran = run_tests(broken, TESTS[0])
    assert ran.returncode == 1 and "failed" in ran.stdout


def test_it_is_in_the_style_of_the_house(copy: Path) -> None:
    files = ["di4c_lm/samplers/outside_in.py", "di4c_lm/samplers/registry.py", TESTS[0]]
    for check in (["format", "--check"], ["check"]):
        ran = subprocess.run([sys.executable, "-m", "ruff", *check, *files], cwd=copy, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout
