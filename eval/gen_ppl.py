"""Generative perplexity and sample entropy of a run's student and teacher, beside held-out text.

python eval/gen_ppl.py [run=<dir>] [steps=[1,2,4]] [evaluator=<dir or hub name>] ...     --help lists the keys
"""

import sys

from di4c_lm.core import cli
from di4c_lm.measure.text.gen_ppl_settings import GenPplConfig


def main(argv: list[str]) -> int:
    """Measure, write the report, print the table; bad input ends with exit status 2."""
    settings = cli.parse_words(GenPplConfig, argv, "eval/gen_ppl.py")
    from di4c_lm.domains.text.model import load_run
    from di4c_lm.domains.text.report import gen_ppl_report
    from di4c_lm.measure.runs import find_run

    cli.log_to_terminal()
    try:
        print(gen_ppl_report(load_run(find_run(settings.run, settings.outputs)), settings))
    except (ValueError, ConnectionError) as error:
        cli.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
