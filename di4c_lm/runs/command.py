"""What every command does with its arguments: `key=value` by the fields of a section of settings; bad input ends with exit status 2."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import SettingError, fields
from di4c_lm.core.terminal import errors_end, log_to_terminal

T = TypeVar("T")
_PROCESSES = "--nproc"


def run_command(program: str, settings_class: type[T], work: Callable[[T], str | None], argv: Sequence[str]) -> int:
    """Read the settings of the command `program`, do the work, print what it returns, if anything, and return 0.

    `--help` and bad input end the program, the latter with its message and status 2.
    """
    settings = parse(settings_class, argv, program=program)
    log_to_terminal()
    with errors_end():
        text = work(settings)
    if text is not None:
        sys.stdout.write(f"{text}\n")
    return 0


def own_arguments(settings_class: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that name fields of `settings_class`, and the others: those of the run that a command is about."""
    names = fields(settings_class)
    own = [word for word in argv if word.partition("=")[0].removeprefix("--").split(".")[0].replace("-", "_") in names]
    return own, [word for word in argv if word not in own]


def launch_if_asked(command: Sequence[str], argv: Sequence[str]) -> list[str]:
    """The arguments without `--nproc <number>`; several processes are started by DeepSpeed's launcher, and this call does not return.

    Without `--nproc` there are as many as this machine has GPUs. What a launcher has started starts none.

    Args:
        command: the words of the command that each process is to run, such as ("train", "text").
        argv: its arguments.

    Raises:
        ValueError: a number that is none, below 1, or beside a launcher's own.
    """
    asked, rest = _processes(argv)
    if "RANK" in os.environ:
        if asked is not None:
            raise SettingError(_PROCESSES, asked, "left out under a launcher, which has its own number of processes")
        return rest
    if asked is None and "-h" not in rest and "--help" not in rest:
        import torch

        asked = torch.cuda.device_count()
    if asked is not None and asked > 1:
        _launch(asked, [*command, *rest])
    return rest


def _processes(argv: Sequence[str]) -> tuple[int | None, list[str]]:
    rest, asked = list(argv), None
    for index, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == _PROCESSES:
            asked = value if equals else "".join(argv[index + 1 : index + 2])
            del rest[index : index + (1 if equals else 2)]
            break
    if asked is not None and not (asked.isdecimal() and int(asked) >= 1):
        raise SettingError(_PROCESSES, asked, "a whole number of at least 1")
    return None if asked is None else int(asked), rest


def _launch(processes: int, words: Sequence[str]) -> NoReturn:
    """Become DeepSpeed's launcher on this machine, which starts `python -m di4c_lm <words>` on each rank.

    The command reads its words in order, so the launcher is not to put one of its own before them; ranks know their number by $LOCAL_RANK.
    """
    from di4c_lm.training.distributed import free_port

    place = ["--num_gpus", str(processes), "--master_port", str(free_port()), "--no_local_rank"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "deepspeed.launcher.runner", *place, "--module", "di4c_lm", *words])
