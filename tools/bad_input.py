"""Gives the commands bad input of every kind, and counts how many answer as promised.

    python tools/bad_input.py [only=<part of a name>] [keep=<folder>] [list=true]

Each case of `tools/misuse/cases.yaml` is a command in a folder of its own, where `in/` holds what `tools/misuse/files.py` makes. It is as
promised when it ends with its status, its last line on stderr begins with `error: ` (for a status of 2) and says each of the words
that the case asks for, no traceback is printed, what must not change has not changed, and no code out of a model's folder has run. A
line for each case that fails; the last line is `N of M as promised`. Status 0 where all are.
"""

import contextlib
import hashlib
import os
import resource
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from di4c_lm.core.settings import section, setting
from di4c_lm.runs.command import run_command
from tools.misuse.files import PWNED, make_inputs

ROOT = Path(__file__).resolve().parents[1]
CASES = Path(__file__).with_name("misuse") / "cases.yaml"
TIMEOUT_S = 120
TINY = (
    "teacher=random train.steps=3 eval.skip=true model.hidden_size=32 model.num_blocks=1 model.num_heads=2 "
    "model.cond_dim=16 data.length=16 train.micro_batch_size=2 mixture.codebook_size=8 run.threads=1 run.device=cpu"
)
GIVEN = (
    "train.steps=3 data=in/c.jsonl data.tokenizer=in/run/teacher train.micro_batch_size=2 eval.skip=true run.threads=1"
)
MINI = (
    "recipe=copula data.records=chat data.length=64 train.steps=2 train.micro_batch_size=2 eval.skip=true "
    "run.threads=1 run.device=cpu"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One command with bad input, and what is promised of it."""

    name: str
    run: str  # script and words; {tiny}, {bpe}, {given}, {mini}: of a small run, its tokenizer, a given teacher, a decoder
    says: tuple[str, ...] = ()  # of the last line on stderr; where the status is 0, of anything printed
    silent: tuple[str, ...] = ()  # what is not printed: what the command does not come to
    status: int = 2
    first: tuple[str, ...] = ()  # commands before it, or `cp a b`
    untouched: str = ""  # a file or folder that the command leaves as it is
    file_bytes: int = 0  # no file may grow beyond it, as on a full disk
    memory_gib: float = 0.0  # that the command may take beyond what it begins with
    env: str = ""  # KEY=value words

    def __post_init__(self) -> None:
        for name in ("says", "silent", "first"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))


@section
class Settings:
    """Which cases, and where their inputs are kept."""

    only: str = setting("", "those whose names have this part")
    keep: str | None = setting(None, "a folder for the inputs and what the commands leave; null: a temporary one")
    list: bool = setting(False, "name the cases and end")


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    status = 0

    def work(settings: Settings) -> None:
        nonlocal status
        cases = [case for case in load_cases() if settings.only in case.name]
        if settings.list:
            print("\n".join(f"{case.name}: {case.run}" for case in cases))
            return
        with contextlib.ExitStack() as stack:
            folder = Path(settings.keep or stack.enter_context(tempfile.TemporaryDirectory())).resolve()
            failures = [
                failure for case in cases if (failure := attempt(case, folder)) and _print_failure(case, failure)
            ]
        print(f"{len(cases) - len(failures)} of {len(cases)} as promised")
        status = 1 if failures else 0

    return run_command("python tools/bad_input.py", Settings, work, argv) or status


def load_cases(path: Path = CASES) -> list[Case]:
    """The cases. Raises `ValueError` where two share a name."""
    cases = [Case(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: names must be different, got {', '.join(twice)} twice")
    return cases


def attempt(case: Case, folder: Path) -> str:
    """Run the case below `folder`, its inputs made there first where they are absent. What is not as promised, or nothing."""
    inputs, made = folder / "inputs", folder / "inputs are made"
    if not made.exists():
        shutil.rmtree(inputs, ignore_errors=True)
        inputs.mkdir(parents=True)
        making = folder / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir()
        (making / "in").symlink_to(inputs)
        make_inputs(inputs, lambda words: _must(words, making))
        made.touch()
    place = folder / "cases" / hashlib.sha256(case.name.encode()).hexdigest()[:12]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "in").symlink_to(inputs)
    for words in case.first:
        kind, _, rest = words.partition(" ")
        if kind == "cp":
            source, target = shlex.split(rest)
            copy = shutil.copytree if (place / source).is_dir() else shutil.copy
            copy(place / source, place / target)
        else:
            _must(words, place)
    before = _digest(place / case.untouched) if case.untouched else ""
    status, out, err = execute(case, place)
    return _judge(case, place, status, out, err, before)


def _judge(case: Case, place: Path, status: int, out: str, err: str, before: str) -> str:
    problems = []
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if status != case.status:
        problems.append(f"status {status}, promised {case.status}")
    if "Traceback (most recent call last)" in err:
        problems.append("a traceback")
    if case.status == 2 and not last.startswith("error: "):
        problems.append("the last line is no error")
    where = last if case.status == 2 else out + err
    problems += [f"{words!r} is not said" for words in case.says if words not in where]
    problems += [f"it came to {words!r}" for words in case.silent if words in out + err]
    if case.untouched and _digest(place / case.untouched) != before:
        problems.append(f"{case.untouched} has changed")
    if list(place.rglob(PWNED)):
        problems.append("code out of the input ran")
    return "; ".join(problems) + (f" | {last[:600]}" if problems else "") if problems else ""


def _print_failure(case: Case, failure: str) -> bool:
    print(f"FAILED {case.name}: {case.run}\n       {failure}", flush=True)
    return True


def _must(words: str, place: Path) -> None:
    """Run a command that must succeed."""
    status, _, err = execute(Case(name="", run=words, status=0), place)
    if status != 0:
        raise RuntimeError(f"{words} ended with {status}:\n{err[-3000:]}")


def execute(case: Case, place: Path) -> tuple[int, str, str]:
    """The status of the case's command in `place`, and what it printed to stdout and stderr. 124 where it takes too long."""
    out, err = place / "stdout", place / "stderr"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _become(case, place, out, err)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace")
        time.sleep(0.01)
    code = os.waitstatus_to_exitcode(status)
    return code, out.read_text("utf-8", "replace"), err.read_text("utf-8", "replace")


def _become(case: Case, place: Path, out: Path, err: Path) -> None:
    """Run the command in this process, which it ends."""
    status = 1
    try:
        os.setsid()
        os.chdir(place)
        for stream, path in ((0, Path(os.devnull)), (1, out), (2, err)):
            os.dup2(os.open(path, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        os.environ |= {"DI4C_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        os.environ |= dict(word.split("=", 1) for word in case.env.split())
        if case.file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (case.file_bytes, case.file_bytes))
        if case.memory_gib:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limit = pages * os.sysconf("SC_PAGE_SIZE") + int(case.memory_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        script, *words = shlex.split(
            case.run.replace("{tiny}", TINY)
            .replace("{given}", GIVEN)
            .replace("{bpe}", "data.vocab_size=300")
            .replace("{mini}", MINI)
        )
        sys.argv = [str(ROOT / script), *words]
        runpy.run_path(str(ROOT / script), run_name="__main__")
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _digest(path: Path) -> str:
    """A hash of all names and contents at `path`, but for locks."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file() and file.name != ".lock":
            digest.update(str(file.relative_to(path.parent)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _warm_up() -> None:
    """Load what the commands load, so that each begins at once."""
    import datasets  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import di4c_lm.runs.recipe  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    _warm_up()
    sys.exit(main(sys.argv[1:]))
