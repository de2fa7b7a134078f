"""The command `di4c bench gpu_day` from a checkout: `PYTHONPATH=. python tools/gpu_day.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", "gpu_day", *sys.argv[1:]]))
