"""What every script here does with its arguments: `key=value` by the fields of a section of settings; bad input ends with exit status 2."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from di4c_lm.core import cli
from di4c_lm.core.settings import build, check, fields

T = TypeVar("T")
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BAD_INPUT = (ValueError, ConnectionError, OSError)


def run_script(script: str, settings_class: type[T], work: Callable[[T], Any], argv: Sequence[str]) -> int:
    """Read the settings of `script`, do the work, and return 0; what `BAD_INPUT` it raises ends the program with its message."""
    settings = read_settings(script, settings_class, argv)
    cli.log_to_terminal()
    try:
        work(settings)
    except BAD_INPUT as error:
        cli.fail(str(error))
    return 0


def read_settings(script: str, settings_class: type[T], argv: Sequence[str]) -> T:
    """A section of settings from `key=value`; `--help` and bad input end the program."""
    if {"-h", "--help"} & {*argv}:
        cli.parse_words(settings_class, argv, f"tools/{Path(script).name}")
    try:
        for argument in argv:
            key, equals, _ = argument.partition("=")
            check(equals, "an argument", argument, "key=value; --help lists the keys")
            for old, new in getattr(settings_class, "OLD_KEYS", {}).items():
                if old in (key, argument):
                    raise ValueError(f"{old} is {new} now")
        return build(settings_class, dict(argument.split("=", 1) for argument in argv), text=True)
    except ValueError as error:
        cli.fail(str(error))


def own_arguments(settings_class: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that name fields of `settings_class`, and the others: those of the run that a script is about."""
    own = [argument for argument in argv if argument.partition("=")[0] in fields(settings_class)]
    return own, [argument for argument in argv if argument not in own]
