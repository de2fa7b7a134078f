"""The command `di4c prepare shards` from a checkout: `python tools/prepare_shards.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "shards", *sys.argv[1:]]))
