"""The command `di4c eval frontier` from a checkout: `python eval/frontier.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "frontier", *sys.argv[1:]]))
