"""FID, Inception Score, precision, recall, density and coverage of an image run's teacher and student, beside real images.

python eval/images.py [run=<dir>] [steps=[2,4,8,16]] [protocol=full|quick] [features=inception|<dir>] ...     --help lists the keys
"""

import sys

from di4c_lm.core.compose import measure
from di4c_lm.domains.images import images
from di4c_lm.measure.images.report import ImageReportConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    return measure(ImageReportConfig, argv, "eval/images.py", images)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
