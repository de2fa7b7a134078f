"""Keep the figures of a run's closing report for the documentation, as docs/results/<name>.json:

python tools/keep_result.py report=outputs/<run>/report/gen_ppl.json name=<name> command="..."
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from di4c_lm.core.files import write_text
from di4c_lm.core.settings import check, section, setting
from di4c_lm.measure.render.manifest import read_result
from di4c_lm.runs.command import run_command
from tools.docs.results import RESULTS, as_text, of_report


@section
class Settings:
    """Keep the figures of a run's closing report for the documentation."""

    report: str = setting("", "report/gen_ppl.json of a run on text")
    name: str = setting("", "what the result is called")
    command: str = setting("", "the command that made the run")
    counting: str = setting("", "what n-grams of the training text do to it; empty: what the report says")
    evaluator: str = setting("", "what the evaluator is; empty: the name of its folder")
    note: str = setting("", "whatever else a reader should know")
    out: str = setting(str(RESULTS), "folder that the file is written to")


def keep_result(settings: Settings) -> str:
    """Write the result file; where it is and how it is shown. Raises `ValueError` for a report of another kind."""
    for key in ("report", "name", "command"):
        check(getattr(settings, key) != "", key, getattr(settings, key), "given")
    report = read_result(Path(settings.report))
    result = of_report(
        report, command=settings.command, counting=settings.counting, evaluator=settings.evaluator, note=settings.note
    )
    path = Path(settings.out) / f"{settings.name}.json"
    write_text(path, as_text(result))
    return f"{path}: shown by <!-- table: {settings.name} --> and `python tools/render_docs.py`"


main = functools.partial(run_command, "python tools/keep_result.py", Settings, keep_result)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
