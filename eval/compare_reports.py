"""Result files side by side, refused where their numbers do not compare.

python eval/compare_reports.py files=[a/report/report.json,b/report/report.json] [force=true]     --help lists the keys
"""

import sys
from pathlib import Path

from di4c_lm.core import cli
from di4c_lm.measure.render.comparability import compare_results
from di4c_lm.measure.text.suite_settings import CompareReportsConfig


def main(argv: list[str]) -> int:
    """Print the table; files that do not compare end with exit status 2."""
    settings = cli.parse_words(CompareReportsConfig, argv, "eval/compare_reports.py")
    try:
        print(compare_results([Path(file) for file in settings.files], force=settings.force))
    except ValueError as error:
        cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
