"""The command `di4c eval distribution` from a checkout: `python eval/distribution.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "distribution", *sys.argv[1:]]))
