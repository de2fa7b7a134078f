"""The command `di4c eval images` from a checkout: `python eval/images.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "images", *sys.argv[1:]]))
