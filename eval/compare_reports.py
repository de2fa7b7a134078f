"""The command `di4c eval compare_reports` from a checkout: `python eval/compare_reports.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "compare_reports", *sys.argv[1:]]))
