"""Distil a few-step student of text, or a chain of them.

deepspeed launch/train_lm.py [key=value ...]     --help lists the keys
"""

import logging
import os
import sys
from pathlib import Path

from di4c_lm import cli

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(argv: list[str]) -> int:
    """Read the settings, run, and turn bad input into exit status 2."""
    config, rounds = cli.parse(argv, CONFIGS, "train_lm", "launch/train_lm.py")
    from di4c_lm.rounds import run_chain
    from di4c_lm.runs import run_text
    from di4c_lm.training.distributed import shutdown

    cli.log_to_terminal()
    try:
        return run_chain(config, rounds) if rounds else run_text(config)
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
