"""Generative perplexity and sample entropy of a run's student and teacher, beside the validation set.

python eval/gen_ppl.py [run=<dir>] [steps=[1,2,4]] [evaluator=<dir or hub name>] ...     --help lists the keys
"""

import sys

from di4c_lm.core.compose import measure
from di4c_lm.domains.text.domain import gen_ppl
from di4c_lm.measure.text.gen_ppl import GenPplConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    return measure(GenPplConfig, argv, "eval/gen_ppl.py", gen_ppl)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
