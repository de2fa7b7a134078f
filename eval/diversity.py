"""Diversity of a run's samples beside held-out text.

python eval/diversity.py [run=<dir>] [models=[teacher,<name>=<dir>]] [steps=[1,2,4]] ...     --help lists the keys
"""

import sys

from di4c_lm.measure.script import run_part
from di4c_lm.measure.text.suite_settings import DiversityConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    return run_part(DiversityConfig, argv, "eval/diversity.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
