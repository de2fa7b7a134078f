"""Generative perplexity and sample entropy of several models, such as the rounds of a chain, in one table.

python eval/compare.py run=<chain's folder>
python eval/compare.py models=[mdlm=<dir>,di4c=<dir>] run=<dir> [steps=[1,2,4]] ...     --help lists the keys
"""

import sys

from di4c_lm.core.compose import measure
from di4c_lm.domains.text.domain import compare
from di4c_lm.measure.text.gen_ppl import CompareConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    return measure(CompareConfig, argv, "eval/compare.py", compare)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
