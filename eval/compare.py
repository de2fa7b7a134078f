"""The command `di4c eval compare` from a checkout: `python eval/compare.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "compare", *sys.argv[1:]]))
