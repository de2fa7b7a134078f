"""The command `di4c eval gen_ppl` from a checkout: `python eval/gen_ppl.py [key=value ...]`."""

import sys

from di4c_lm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["eval", "gen_ppl", *sys.argv[1:]]))
