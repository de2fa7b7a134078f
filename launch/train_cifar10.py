"""Distil a few-step student of images from a tauLDR teacher.

deepspeed launch/train_cifar10.py [key=value ...]     --help lists the keys
"""

import sys
from pathlib import Path
from typing import NoReturn

from di4c_lm.core.terminal import run_script
from di4c_lm.domains.pixels.domain import DOMAIN
from di4c_lm.runs.folder import parse_run

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(argv: list[str]) -> NoReturn:
    """Read the settings, run, and end the program."""
    settings, rounds = parse_run(DOMAIN, argv, CONFIGS, program="deepspeed launch/train_cifar10.py")
    from di4c_lm.runs.recipe import run
    from di4c_lm.training.distributed import shutdown

    run_script(lambda: run(DOMAIN, settings, rounds), shutdown)


if __name__ == "__main__":
    main(sys.argv[1:])
