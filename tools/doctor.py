"""The command `di4c doctor` from a checkout: `python tools/doctor.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
