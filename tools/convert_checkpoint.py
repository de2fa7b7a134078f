"""The command `di4c convert` from a checkout: `python tools/convert_checkpoint.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
