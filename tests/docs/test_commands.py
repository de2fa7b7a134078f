"""Each command that README.md and the documentation show is one: its words, its keys and their values are those of today."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.runs.command import own_arguments
from tools.docs.reference import Entry, entries

ROOT = Path(__file__).parents[2]
ENTRIES = {one.program: one for one in entries()}
TRAINERS = {"train_lm.py": "text", "train_cifar10.py": "cifar10", "train_imagenet.py": "imagenet"}
ABOUT_A_RUN = ("di4c doctor", "di4c prepare features")  # whose other keys are those of the run
TOOLS = {path.stem for path in (ROOT / "tools").glob("*.py")}
_LAUNCHER = re.compile(r"(?:deepspeed|python)\b.*?(?:launch|eval|tools)/(\w+\.py)")


def shown(page: Path) -> Iterator[str]:
    """The commands in a page's blocks of shell."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for command in line.partition(" # ")[0].split(" && "):
                if command.strip():
                    yield command.strip()


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = sorted({command for page in PAGES for command in shown(page) if re.match(r"di4c|deepspeed|python", command)})


def check(command: str) -> None:
    """Raise `ValueError` for a command that there is not, or a key or value that its settings do not have."""
    command = re.sub(r"<[^<>]*>", "placeholder", command)
    launched = _LAUNCHER.match(command)
    words = shlex.split(command)
    if launched and launched[1] in TRAINERS:
        words = ["di4c", "train", TRAINERS[launched[1]], *(word for word in words[1:] if "=" in word)]
    elif launched:
        if launched[1].removesuffix(".py") not in TOOLS:
            raise ValueError(f"there is no {launched[1]}")
        return
    elif words[:3] == ["python", "-m", "di4c_lm"]:
        words = ["di4c", *words[3:]]
    elif words[0] != "di4c" or words[1:] == ["--version"]:
        return
    entry, overrides = command_of(words)
    if entry.program in ABOUT_A_RUN:
        own, overrides = own_arguments(type(entry.settings), overrides)
        compose(type(entry.settings), own)
        entry = ENTRIES["di4c train text"]
    compose(type(entry.settings), overrides, CONFIGS, entry.program.split()[-1])


def command_of(words: list[str]) -> tuple[Entry, list[str]]:
    """The command that the words begin with, and its overrides: flags as `key=true`, what a launcher takes left out."""
    program = [word for word in words if "=" not in word and not word.startswith("-") and not word.isdecimal()]
    if program[1:2] == ["train"] and len(program) == 2:
        program.append("text")
    if " ".join(program) not in ENTRIES:
        raise ValueError(f"there is no {' '.join(program)}")
    rest = [word for word in words if "=" in word or word.startswith("--")]
    flags = [word.removeprefix("--").replace("-", "_") + "=true" if word.startswith("--") else word for word in rest]
    own = ("nproc=", "help=", "prompt=")  # of a launcher, of all commands, and what `sample` reads by itself
    return ENTRIES[" ".join(program)], [word for word in flags if not word.startswith(own)]


def test_there_are_many() -> None:
    assert len(COMMANDS) > 50


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_a_command(command: str) -> None:
    check(command)


@pytest.mark.parametrize(
    "command, message",
    [
        ("di4c trian", "there is no di4c trian"),
        ("di4c train recipe=di4c_papr", "recipe must be one of"),
        ("di4c sample stepz=4", "there is no key stepz"),
        ("deepspeed --num_gpus 8 launch/train_lm.py zero.stage=4", "zero.stage must be one of"),
        ("python tools/unheard_of.py", "there is no unheard_of.py"),
        ("di4c doctor ranks=many", "ranks must be a whole number"),
    ],
)
def test_one_that_is_none_is_noticed(command: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(command)
