"""The command `di4c eval report` from a checkout: `python eval/report.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "report", *sys.argv[1:]]))
