"""Generative perplexity and sample entropy of several models, such as the rounds of a chain, in one table.

python eval/compare.py run=<chain's folder>
python eval/compare.py models=[mdlm=<dir>,di4c=<dir>] run=<dir> [steps=[1,2,4]] ...     --help lists the keys
"""

import sys
from pathlib import Path

from di4c_lm.core import cli
from di4c_lm.measure.text.gen_ppl_settings import CompareConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    settings = cli.parse_words(CompareConfig, argv, "eval/compare.py")
    from di4c_lm.domains.text.model import load_run
    from di4c_lm.domains.text.report import compared, gen_ppl_report
    from di4c_lm.measure.runs import find_run

    cli.log_to_terminal()
    try:
        run = load_run(Path(settings.run) if settings.run else find_run(None, settings.outputs))
        print(gen_ppl_report(compared(settings.models, run) if settings.models else run, settings))
    except (ValueError, ConnectionError) as error:
        cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
