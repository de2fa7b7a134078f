"""Breaks the core on purpose, one small error at a time, and counts how many of them the tests notice.

    python tools/mutants.py [only=<part of a name>] [jobs=1] [list=true]

Each error of `tools/mutants.yaml` replaces one passage of one file in a copy of the checkout and runs the tests named beside it;
it is noticed when they fail, which without any error they must not. A line an error; the last line is `noticed N of M`.
Status 0 where at least 95 % were noticed.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
ERRORS = Path(__file__).with_suffix(".yaml")
COPIED = ("di4c_lm", "tests", "tools", "configs", "launch", "eval", "pyproject.toml")
REACH = 0.95  # share that the tests must notice
TIMEOUT_S = 600  # an error that makes a test hang is noticed


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One deliberate error: `old` stands exactly once in `file` and becomes `new`; `tests` are pytest's arguments."""

    name: str
    file: str
    old: str
    new: str
    tests: str

    def applied(self, text: str) -> str:
        """`text` with the error in it. Raises `ValueError` unless `old` stands there exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.file} must hold {self.old!r} once, it does {text.count(self.old)} times"
            )
        return text.replace(self.old, self.new)


def load_mutants(path: Path = ERRORS) -> list[Mutant]:
    """The deliberate errors. Raises `ValueError` where two share a name."""
    mutants = [Mutant(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]
    names = [mutant.name for mutant in mutants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: names must be different, got {', '.join(twice)} twice")
    return mutants


def is_noticed(mutant: Mutant | None, root: Path = ROOT, tests: str = "") -> bool:
    """Whether the named tests fail on a copy of `root` with the error in it; without one, whether `tests` fail on the copy as it is."""
    name, tests = ("no error", tests) if mutant is None else (mutant.name, mutant.tests)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, copy / name)
        if mutant is not None:
            target = copy / mutant.file
            target.write_text(mutant.applied(target.read_text(encoding="utf-8")), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
        try:
            run = subprocess.run(command, cwd=copy, env=_environment(copy), capture_output=True, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return True
    if run.returncode not in (0, 1, 2):  # 2: the module no longer imports, which any test notices
        raise RuntimeError(f"{name}: pytest ended with {run.returncode}:\n{run.stdout.decode()[-2000:]}")
    return run.returncode != 0


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    given = {key: value for key, _, value in (argument.partition("=") for argument in argv)}
    unknown = set(given) - {"only", "jobs", "list"}
    if unknown:
        sys.stderr.write(f"error: key must be one of only, jobs, list, got {sorted(unknown)[0]!r}\n")
        return 2
    mutants = [mutant for mutant in load_mutants() if given.get("only", "") in mutant.name]
    if given.get("list") == "true":
        print("\n".join(f"{mutant.name}: {mutant.file}" for mutant in mutants))
        return 0
    broken = [tests for tests in sorted({mutant.tests for mutant in mutants}) if is_noticed(None, tests=tests)]
    if broken:
        sys.stderr.write(
            f"error: without any error these fail already, so that they notice none: {', '.join(broken)}\n"
        )
        return 2
    with ThreadPoolExecutor(int(given.get("jobs", "1"))) as pool:
        noticed = 0
        for mutant, seen in zip(mutants, pool.map(is_noticed, mutants), strict=True):
            noticed += seen
            print(f"{'noticed' if seen else 'MISSED '} {mutant.name} ({mutant.file})", flush=True)
    print(f"noticed {noticed} of {len(mutants)}")
    return 0 if noticed >= REACH * len(mutants) else 1


def _environment(copy: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
