"""The command `di4c eval likelihood` from a checkout: `python eval/likelihood.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "likelihood", *sys.argv[1:]]))
