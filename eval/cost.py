"""What sampling costs.

python eval/cost.py [run=<dir>] [models=[teacher,<name>=<dir>]] [steps=[1,2,4]] ...     --help lists the keys
"""

import sys

from di4c_lm.core.compose import measure
from di4c_lm.domains.text.domain import suite
from di4c_lm.measure.text.suite import ReportConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    return measure(ReportConfig, ["parts=[cost]", *argv], "eval/cost.py", suite)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
