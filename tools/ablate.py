"""The command `di4c ablate` from a checkout: `python tools/ablate.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["ablate", *sys.argv[1:]]))
