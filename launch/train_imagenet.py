"""Distil a few-step student of MaskGIT on images as codes.

deepspeed launch/train_imagenet.py [key=value ...]     --help lists the keys
"""

import logging
import os
import sys
from pathlib import Path

from di4c_lm import cli, image_cli
from di4c_lm.config_imagenet import ImagenetConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(argv: list[str]) -> int:
    """Read the settings, run, and turn bad input into exit status 2."""
    config = image_cli.parse(ImagenetConfig, argv, CONFIGS, "train_imagenet", "launch/train_imagenet.py")
    from di4c_lm.imagenet_runs import run_imagenet
    from di4c_lm.training.distributed import shutdown

    cli.log_to_terminal()
    try:
        return run_imagenet(config)
    except (ValueError, ConnectionError) as error:
        cli.fail(str(error))
    finally:
        shutdown()
        logging.shutdown()


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # All is saved and closed. Native threads of the collectives' libraries may outlive the interpreter, and then abort a run that is over.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
