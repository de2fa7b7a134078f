"""Distil a few-step student of text, or a chain of them.

deepspeed launch/train_lm.py [key=value ...]     --help lists the keys
"""

import sys
from pathlib import Path
from typing import NoReturn

from di4c_lm.core import cli

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(argv: list[str]) -> NoReturn:
    """Read the settings, run, and end the program."""
    config, rounds = cli.parse(argv, CONFIGS, "train_lm", "launch/train_lm.py")
    from di4c_lm.domains.text.domain import DOMAIN
    from di4c_lm.runs.recipe import run

    cli.run_script(lambda: run(DOMAIN, config, rounds))


if __name__ == "__main__":
    main(sys.argv[1:])
