"""What every script here does with its arguments: `key=value` by the fields of a section of settings; bad input ends with exit status 2."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import fields
from di4c_lm.core.terminal import errors_end, log_to_terminal

T = TypeVar("T")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def run_script(script: str, settings_class: type[T], work: Callable[[T], Any], argv: Sequence[str]) -> int:
    """Read the settings of `script`, do the work, and return 0; bad input ends the program with its message."""
    settings = read_settings(script, settings_class, argv)
    log_to_terminal()
    with errors_end():
        work(settings)
    return 0


def read_settings(script: str, settings_class: type[T], argv: Sequence[str]) -> T:
    """A section of settings from `key=value`; `--help` and bad input end the program."""
    return parse(settings_class, argv, program=f"python tools/{Path(script).name}")


def own_arguments(settings_class: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that name fields of `settings_class`, and the others: those of the run that a script is about."""
    own = [argument for argument in argv if argument.partition("=")[0] in fields(settings_class)]
    return own, [argument for argument in argv if argument not in own]
