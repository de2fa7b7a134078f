"""The command `di4c eval diversity` from a checkout: `python eval/diversity.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "diversity", *sys.argv[1:]]))
