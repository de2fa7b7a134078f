"""What the scripts of `eval/` that measure a run's models share: words in, a report and a table out."""

import sys

from di4c_lm.core import cli
from di4c_lm.measure.text.suite_settings import ReportConfig


def run_part(section: type[ReportConfig], argv: list[str], program: str) -> int:
    """Measure what `section` and the words `argv` choose, write the report, print the table. Bad input ends with exit status 2."""
    settings = cli.parse_words(section, argv, program)
    from di4c_lm.domains.text.model import load_run
    from di4c_lm.measure.runs import find_run
    from di4c_lm.measure.text.report import full_report

    cli.log_to_terminal()
    try:
        report = full_report(load_run(find_run(settings.run, settings.outputs)), settings)
    except (ValueError, ConnectionError) as error:
        cli.fail(str(error))
    sys.stdout.write(f"{report}\n")
    return 0
