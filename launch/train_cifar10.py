"""Distil a few-step student of images from a tauLDR teacher.

deepspeed launch/train_cifar10.py [key=value ...]     --help lists the keys
"""

import sys
from pathlib import Path
from typing import NoReturn

from di4c_lm.core import cli, image_cli
from di4c_lm.domains.pixels.settings import CifarConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(argv: list[str]) -> NoReturn:
    """Read the settings, run, and end the program."""
    config = image_cli.parse(CifarConfig, argv, CONFIGS, "train_cifar10", "launch/train_cifar10.py")
    from di4c_lm.domains.pixels.domain import DOMAIN
    from di4c_lm.runs.recipe import run

    cli.run_script(lambda: run(DOMAIN, config))


if __name__ == "__main__":
    main(sys.argv[1:])
