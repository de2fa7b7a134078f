"""Distil a few-step student of images from a tauLDR teacher.

deepspeed launch/train_cifar10.py [key=value ...]     --help lists the keys
"""

import logging
import os
import sys
from pathlib import Path

from di4c_lm import cli, image_cli
from di4c_lm.config_cifar10 import CifarConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(argv: list[str]) -> int:
    """Read the settings, run, and turn bad input into exit status 2."""
    config = image_cli.parse(CifarConfig, argv, CONFIGS, "train_cifar10", "launch/train_cifar10.py")
    from di4c_lm.image_runs import run_cifar10
    from di4c_lm.training.distributed import shutdown

    cli.log_to_terminal()
    try:
        return run_cifar10(config)
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
