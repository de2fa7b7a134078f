"""The command `di4c bench zero` from a checkout: `python tools/bench_zero.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", "zero", *sys.argv[1:]]))
