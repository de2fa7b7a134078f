"""The command `di4c eval brier` from a checkout: `python eval/brier.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "brier", *sys.argv[1:]]))
