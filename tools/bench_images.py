"""The command `di4c bench images` from a checkout: `python tools/bench_images.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", "images", *sys.argv[1:]]))
