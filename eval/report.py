"""Every part of the evaluation of a run's models, with canaries, as one page.

python eval/report.py [run=<dir>] [models=[teacher,<name>=<dir>]] [steps=[1,2,4]] ...     --help lists the keys
"""

import sys

from di4c_lm import cli
from di4c_lm.metrics.suite_settings import ReportConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    settings = cli.parse_words(ReportConfig, argv, "eval/report.py")
    from di4c_lm.domains.text import load_run
    from di4c_lm.evaluation.report import full_report
    from di4c_lm.metrics.runs import find_run

    cli.log_to_terminal()
    try:
        print(full_report(load_run(find_run(settings.run, settings.outputs)), settings))
    except (ValueError, ConnectionError) as error:
        cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
