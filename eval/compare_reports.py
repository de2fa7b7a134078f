"""Result files side by side, refused where their numbers do not compare.

python eval/compare_reports.py files=[a/report/report.json,b/report/report.json] [force=true]     --help lists the keys
"""

import sys

from di4c_lm.core.compose import measure
from di4c_lm.measure.render.manifest import CompareReportsConfig, compare_results


def main(argv: list[str]) -> int:
    """Print the table; files that do not compare end with exit status 2."""
    return measure(CompareReportsConfig, argv, "eval/compare_reports.py", compare_results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
