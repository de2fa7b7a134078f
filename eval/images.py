"""FID, Inception Score, precision, recall, density and coverage of an image run's teacher and student, beside held-out images.

python eval/images.py [run=<dir>] [steps=[2,4,8,16]] [protocol=full|quick] [features=inception|<dir>] ...     --help lists the keys
"""

import sys

from di4c_lm.core import cli
from di4c_lm.measure.images.settings import ImageReportConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    settings = cli.parse_words(ImageReportConfig, argv, "eval/images.py")
    from di4c_lm.domains.image_report import load_image_run, run_report
    from di4c_lm.measure.runs import find_run

    cli.log_to_terminal()
    try:
        print(run_report(load_image_run(find_run(settings.run, settings.outputs), settings), settings))
    except (ValueError, ConnectionError) as error:
        cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
