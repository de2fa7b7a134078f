"""The command `di4c prepare tokenizer` from a checkout: `python tools/restrict_tokenizer.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "tokenizer", *sys.argv[1:]]))
