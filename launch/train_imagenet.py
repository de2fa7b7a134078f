"""The command `di4c train imagenet` from a checkout: `deepspeed launch/train_imagenet.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", "imagenet", *sys.argv[1:]]))
