"""Keep the figures of a run's closing report for the documentation, as docs/results/<name>.json:

python tools/keep_result.py report=outputs/<run>/report/gen_ppl.json name=<name> command="..."

or of a study with an exact or a given teacher, whose rows do not say what was trained:

python tools/keep_result.py report=outputs/ablate/<study>/rows.json name=<name> command="..." data="..." model="..." training="..."
    samples="..."
"""

import functools
import json
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from di4c_lm.core.files import write_text
from di4c_lm.core.settings import check, section, setting
from di4c_lm.measure.render.manifest import read_result
from di4c_lm.runs.ablate.outcome import beaten
from di4c_lm.runs.command import run_command
from tools.docs.results import RESULTS, as_text, of_report, of_study


@section
class Settings:
    """Keep the figures of a run's closing report for the documentation."""

    report: str = setting(
        "", "report/gen_ppl.json of a run on text, or rows.json of a study with an exact or a given teacher"
    )
    name: str = setting("", "what the result is called")
    command: str = setting("", "the command that made the run")
    counting: str = setting("", "what n-grams of the training text do to it; empty: what the report says")
    evaluator: str = setting("", "what the evaluator is; empty: the name of its folder")
    note: str = setting("", "whatever else a reader should know")
    data: str = setting("", "of a study: what the data are")
    model: str = setting("", "of a study: what the models are")
    training: str = setting("", "of a study: how they were trained")
    samples: str = setting("", "of a study: how many samples a cell")
    out: str = setting(str(RESULTS), "folder that the file is written to")


def keep_result(settings: Settings) -> str:
    """Write the result file; where it is and how it is shown. Raises `ValueError` for a report of another kind."""
    for key in ("report", "name", "command"):
        check(getattr(settings, key) != "", key, getattr(settings, key), "given")
    path = Path(settings.report)
    rows = json.loads(path.read_text(encoding="utf-8")) if path.name == "rows.json" and path.is_file() else None
    if rows:
        result = of_study(rows, facts_of_study(settings, path, rows))
    else:
        said = {key: getattr(settings, key) for key in ("command", "counting", "evaluator", "note")}
        result = of_report(read_result(path), **said)
    path = Path(settings.out) / f"{settings.name}.json"
    write_text(path, as_text(result))
    return f"{path}: shown by <!-- table: {settings.name} --> and `python tools/render_docs.py`"


def facts_of_study(settings: Settings, path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """What a study's rows do not say of themselves. Raises `ValueError` where a fact is not given."""
    given = ("data", "model", "training", "samples")
    for key in given:
        check(getattr(settings, key) != "", key, "", "given for a study")
    counted = beaten([row for row in rows if "steps" in row]).replace("\n", "; ")
    given_teacher = "gen_ppl" in rows[0]
    check(not given_teacher or settings.evaluator != "", "evaluator", "", "given for a study with a given teacher")
    return {
        "date": date.fromtimestamp(path.stat().st_mtime).isoformat(),
        **{key: getattr(settings, key) for key in ("command", *given)},
        "evaluator": settings.evaluator or "the source itself, which is known",
        "seeds": ", ".join(map(str, sorted({row["seed"] for row in rows}))),
        "machine": f"{platform.system()}, CPU",
        "counting": settings.counting or counted or "the source is what counting gives",
        **({"note": settings.note} if settings.note else {}),
    }


main = functools.partial(run_command, "python tools/keep_result.py", Settings, keep_result)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
