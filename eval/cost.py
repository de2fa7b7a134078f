"""The command `di4c eval cost` from a checkout: `python eval/cost.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "cost", *sys.argv[1:]]))
