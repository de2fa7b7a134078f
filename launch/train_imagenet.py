"""Distil a few-step student of MaskGIT on images as codes.

deepspeed launch/train_imagenet.py [key=value ...]     --help lists the keys
"""

import sys
from pathlib import Path
from typing import NoReturn

from di4c_lm.core import cli, image_cli
from di4c_lm.domains.codes.settings import ImagenetConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(argv: list[str]) -> NoReturn:
    """Read the settings, run, and end the program."""
    config = image_cli.parse(ImagenetConfig, argv, CONFIGS, "train_imagenet", "launch/train_imagenet.py")
    from di4c_lm.domains.codes.domain import DOMAIN
    from di4c_lm.runs.recipe import run

    cli.run_script(lambda: run(DOMAIN, config))


if __name__ == "__main__":
    main(sys.argv[1:])
