"""The command `di4c eval mixture` from a checkout: `python eval/mixture.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "mixture", *sys.argv[1:]]))
