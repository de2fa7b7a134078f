"""A measurement as files: <name>.json, .csv, .png and .html, the same for text and images."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from di4c_lm.core.files import write_bytes
from di4c_lm.measure.flow import with_end
from di4c_lm.measure.render.page import page
from di4c_lm.measure.render.pictures import Panel, Row, plot

_WHICH = (
    "task",
    "set",
    "batch",
    "t",
    "temperature",
    "against",
    "metric",
)  # what tells apart the rows of a model and step count
_ENDS = ("_low", "_high", "_p", "p_value")


@final
@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a kind of report is shown.

    Args:
        data: what pictures call real data.
        panels: the metrics in the picture.
        headings: of the columns of the main table; `details`: of the table below it.
        long: the sheet has a line a number, of every table, in place of a line a row.
    """

    data: str
    panels: tuple[Panel, ...]
    headings: Mapping[str, str]
    details: Mapping[str, str] = field(default_factory=dict)
    long: bool = False


def write_report(
    folder: Path,
    name: str,
    report: Mapping[str, Any],
    layout: Layout,
    *,
    title: str,
    subtitle: str = "",
    pictures: Mapping[str, bytes] | None = None,
) -> dict[str, Path]:
    """Writes `<name>.json`, `.csv`, `.png`, if there is anything to plot, and `.html`, each whole or not at all; their paths by kind.

    Args:
        report: manifest, rows, comparisons and further tables, lists of flat rows; alarms; of text `examples`, rows of model, steps,
            prompt and text, and `verdict`, sentences on what counting does to the models.
        pictures: PNGs by name, written beside and shown on the page, those that are not empty.

    Raises `ValueError` for a number that JSON cannot hold (infinite, NaN), naming its row; then nothing is written.
    """
    _check_finite(report)
    pictures = pictures or {}
    plotted = plot(report["rows"], layout.panels, data=layout.data, title=title)
    shown = page(
        report,
        title=title,
        subtitle=subtitle,
        headings=layout.headings,
        details=layout.details,
        pictures={"metrics against sampling steps": plotted, **pictures},
    )
    contents = {
        "json": (f"{name}.json", (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()),
        "csv": (f"{name}.csv", (_long(report) if layout.long else _wide(report["rows"])).encode()),
        "png": (f"{name}.png", plotted),
        "html": (f"{name}.html", shown.encode()),
        **{of: (f"{of}.png", picture) for of, picture in pictures.items()},
    }
    paths = {kind: folder / file for kind, (file, content) in contents.items() if content}
    for kind, path in paths.items():
        write_bytes(path, contents[kind][1])
    return paths


def with_page(text: str, paths: Mapping[str, Path]) -> str:
    """What a report says in a terminal, and behind it where its page is."""
    return f"{text}\n\nreport: {paths['html']}"


def _check_finite(report: Mapping[str, Any]) -> None:
    for part, rows in report.items():
        for row in rows if isinstance(rows, list) else ():
            for key, value in row.items() if isinstance(row, dict) else ():
                if isinstance(value, float) and not abs(value) < float("inf"):
                    name = row.get("model", row.get("of"))
                    raise ValueError(f"{part}: {key} is {value} for {name!r}: the report holds finite numbers")


def _wide(rows: Sequence[Row]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(
        {key: "+".join(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows
    )
    return out.getvalue()


def _long(report: Mapping[str, Any]) -> str:
    """A line a number, with its interval and p-value where it has them."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["part", "model", "steps", "of", "metric", "value", "low", "high", "p_value"])
    for part in (
        "rows",
        "brier",
        "frontier",
        "matched",
        "likelihood",
        "last_words",
        "correlation",
        "latent_modes",
        "cost",
        "comparisons",
    ):
        for row in report.get(part, ()):
            name = row.get("model") or f"{row['of']} - {row['minus']}"
            of = next((row[key] for key in _WHICH if key in row), "")
            for key, value in row.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number or key == "steps" or key.partition("@")[0].endswith(_ENDS):
                    continue
                low, high = (row.get(with_end(key, end), "") for end in ("low", "high"))
                p_value = row.get(f"{key}_p", row.get("p_value", "") if key == "difference" else "")
                writer.writerow([part, name, row.get("steps", ""), of, key, value, low, high, p_value])
    return out.getvalue()
