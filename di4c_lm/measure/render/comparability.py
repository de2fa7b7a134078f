"""Whether the numbers of result files may stand side by side."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from di4c_lm.core.settings import Texts, section, setting
from di4c_lm.measure.render.table import LEAD, table


@section
class CompareReportsConfig:
    """Rows of several result files in one table, refused where evaluators, noise dtypes, lengths or tokenizers differ."""

    files: Texts = setting((), "gen_ppl.json or report.json files, at least 2")
    force: bool = setting(False, "true: show them all the same, under a warning")


_SHOWN = ("gen_ppl", "entropy", "gradient_moment", "energy", "mauve")


def read_result(path: Path) -> dict[str, Any]:
    """A result file, gen_ppl.json or report.json. Raises `ValueError` for an absent one, and one without manifest and rows."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a result file, gen_ppl.json or report.json; found: {error}") from error
    if not isinstance(found, dict) or not {"manifest", "rows"} <= set(found):
        raise ValueError(f"{path}: expected a result file with a manifest and rows; it has neither or lacks one")
    return found


def differences(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes the files' numbers incomparable, one line each.

    Evaluators, the noise's dtype, lengths, tokenizers, prompts and feature models are looked at.
    """
    found = []
    for name, of in _IDENTITIES.items():
        values = {file: of(manifest) for file, manifest in manifests.items()}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            found.append(f"{name}: " + ", ".join(f"{value!r} in {file}" for file, value in values.items()))
    return found


def compare_results(settings: CompareReportsConfig) -> str:
    """The rows of several files as one table.

    Raises `ValueError` where `differences` finds any, unless `force`, and for fewer than 2 files.
    """
    files = settings.files
    if len(files) < 2:
        raise ValueError(f"files must be at least 2, got {len(files)}")
    results = {file: read_result(Path(file)) for file in files}
    against = differences({file: found["manifest"] for file, found in results.items()})
    if against and not settings.force:
        raise ValueError(
            "the files are not comparable (force=true shows them all the same):\n  " + "\n  ".join(against)
        )
    shown = [key for key in _SHOWN if all(key in row for found in results.values() for row in found["rows"])]
    rows = [{**row, "file": file} for file, found in results.items() for row in found["rows"]]
    numbers = [(key, lambda row, key=key: f"{row[key]:.4g}") for key in shown]
    columns = [
        ("file", lambda row: row["file"]),
        *LEAD,
        *numbers,
        ("flags", lambda row: "; ".join(row.get("flags", ()))),
    ]
    return "".join(f"NOT COMPARABLE, {line}\n" for line in against) + table(rows, columns)


def _evaluators(manifest: Mapping[str, Any]) -> list[Any]:
    evaluator = manifest["judge"]
    every = evaluator.get("judges", [evaluator])
    return [{key: one.get(key) for key in ("sha256", "reads", "eos", "overflow")} | _named(one) for one in every]


def _named(evaluator: Mapping[str, Any]) -> dict[str, Any]:
    return {} if evaluator.get("sha256") else {"name": evaluator.get("name")}


_IDENTITIES = {
    "evaluator": _evaluators,
    "dtype of the noise": lambda manifest: manifest["dtypes"].get("noise"),
    "length": lambda manifest: manifest.get("length"),
    "tokenizer": lambda manifest: manifest.get("tokenizer"),
    "prompting": lambda manifest: manifest.get("prompting"),
    "features": lambda manifest: (manifest["judge"].get("features") or {}).get("sha256"),
}
