"""The command `di4c prepare codes` from a checkout: `python tools/encode_images.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "codes", *sys.argv[1:]]))
