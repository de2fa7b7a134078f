"""The command `di4c train cifar10` from a checkout: `deepspeed launch/train_cifar10.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", "cifar10", *sys.argv[1:]]))
