"""Every part of the evaluation of a run's models, with canaries, as one page.

python eval/report.py [run=<dir>] [models=[teacher,<name>=<dir>]] [steps=[1,2,4]] ...     --help lists the keys
"""

import sys

from di4c_lm.measure.script import run_part
from di4c_lm.measure.text.suite_settings import ReportConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    return run_part(ReportConfig, argv, "eval/report.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
