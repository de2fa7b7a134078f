"""The command `di4c train text` from a checkout: `deepspeed launch/train_lm.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", "text", *sys.argv[1:]]))
