"""The command `di4c eval harness` from a checkout: `python eval/harness.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "harness", *sys.argv[1:]]))
