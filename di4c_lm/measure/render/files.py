"""A measurement as plain text for a terminal, and as files: <name>.json, .csv, .png and .html, the same for text and images."""

import base64
import csv
import html
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, final

from di4c_lm.core.files import write_bytes
from di4c_lm.measure.flow import with_end
from di4c_lm.measure.render.pictures import Panel, Row, plot

Column: TypeAlias = tuple[str, Callable[[Row], str]]
"""Heading, and the cell of a row."""

LEAD: tuple[Column, ...] = (
    ("model", lambda row: str(row["model"])),
    ("steps", lambda row: str(row["steps"] or "-")),
)
NFE: Column = ("NFE", lambda row: f"{row['nfe']:.4g}" if row["steps"] else "-")


def table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A line a row under the columns' headings; nothing for no rows."""
    return aligned([head for head, _ in columns], [[cell(row) for _, cell in columns] for row in rows]) if rows else ""


def aligned(head: list[str], lines: list[list[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right, under a rule."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in (head, rule, *lines)
    )


def with_differences(text: str, comparisons: Sequence[Row], names: Mapping[str, str] | None = None) -> str:
    """`text`, and below it the tested differences, if there are any; `names` are what metrics are called."""
    columns: tuple[Column, ...] = (
        ("difference", lambda c: f"{c['of']} - {c['minus']}"),
        ("steps", lambda c: f"{c['steps']} - {c['minus_steps']}" if "minus_steps" in c else str(c["steps"])),
        ("metric", lambda c: (names or {}).get(c["metric"], str(c["metric"]))),
        ("value", lambda c: f"{c['difference']:+.3g}"),
        ("95 %", lambda c: f"{c['difference_low']:+.3g} to {c['difference_high']:+.3g}"),
        ("p", lambda c: f"{c['p_value']:.3g}"),
    )
    return f"{text}\n\n{table(comparisons, columns)}" if comparisons else text


def short(value: int | float) -> str:
    """A number in as few characters as tell it."""
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


# The page

_TITLES = {
    "likelihood": "Likelihood: bounds on perplexity",
    "last_words": "Last words predicted",
    "correlation": "Mixture: correlations (nats)",
    "latent_modes": "Mixture: λ resampled, frozen, averaged",
    "cost": "Cost of sampling",
    "comparisons": "Differences between models, tested",
}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#2b2f36;max-width:1180px;margin:2.2em auto;padding:0 1.2em}
h1{font-size:1.6em;margin-bottom:.1em}h2{font-size:1.15em;margin:2em 0 .5em}p.sub{color:#6b7280;margin-top:0}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.34em .6em;text-align:right;border-bottom:1px solid #e3e6ea;white-space:nowrap}
th{color:#6b7280;font-weight:600;border-bottom:2px solid #c9ced6}th:first-child,td:first-child,td.text,th.text{text-align:left}
td small{display:block;color:#6b7280;font-size:11px}tr.data{background:#f4f6f8}tr.canary td{color:#8a5a00}
td.text{white-space:normal;min-width:13em}
.alarm,.fine{padding:.7em 1em;border-radius:6px;margin:1em 0}.alarm{background:#fde8e4;color:#8c1d0b}.fine{background:#e6f4ec;color:#1c5c3a}
img{max-width:100%}details{margin:1.4em 0}pre{font-size:12px;overflow-x:auto;background:#f4f6f8;padding:1em;border-radius:6px}
"""


def page(
    report: Mapping[str, Any],
    *,
    title: str,
    subtitle: str,
    headings: Mapping[str, str],
    details: Mapping[str, str],
    pictures: Sequence[bytes],
) -> str:
    """Alarms, pictures, tables, manifest of a report, as `write_report` takes it, as one page of HTML without links."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p class=sub>{html.escape(subtitle)}</p>",
        _alarms(report),
    ]
    for picture in filter(None, pictures):
        parts.append(f'<img alt="picture" src="data:image/png;base64,{base64.b64encode(picture).decode()}">')
    rows = report["rows"]
    if rows:
        parts.append("<h2>Samples beside real data</h2>" + _main_table(rows, headings, flagged="flags" in rows[0]))
    if rows and details:
        parts.append("<h2>More of the same samples</h2>" + _main_table(rows, details, flagged=False))
    for part, heading in _TITLES.items():
        if report.get(part):
            parts.append(f"<h2>{heading}</h2>" + _plain_table(report[part]))
    source = html.escape(json.dumps(report["manifest"], indent=2, ensure_ascii=False))
    parts.append(f"<details><summary>Manifest</summary><pre>{source}</pre></details></html>")
    return "\n".join(parts) + "\n"


def _alarms(report: Mapping[str, Any]) -> str:
    canaries = [row for row in report["rows"] if row.get("kind") == "canary"]
    if report.get("alarms"):
        names = html.escape("; ".join(report["alarms"]))
        return f"<p class=alarm>Do not trust these numbers: the suite did not catch {names}.</p>"
    return f"<p class=fine>All {len(canaries)} canaries were flagged or ranked last.</p>" if canaries else ""


def _main_table(rows: Sequence[Row], headings: Mapping[str, str], *, flagged: bool) -> str:
    present = dict.fromkeys(key for row in rows for key in row)
    scored = {
        key: f"{headings[name]}, {other}"
        for key in present
        if (name := key.partition("@")[0]) in headings and (other := key.partition("@")[2])
    }
    columns = {key: label for key, label in {**headings, **scored}.items() if key in present}
    ranked = "rank" in rows[0]
    head = ["model", "steps", "NFE", *(["rank"] if ranked else []), *columns.values()]
    lines = []
    for row in rows:
        texts = [str(row["model"]), str(row["steps"] or "–"), f"{row['nfe']:.3g}" if row["nfe"] else "–"]
        texts += [str(row["rank"] or "–")] if ranked else []
        cells = [html.escape(text) for text in texts] + [_cell(row, key) for key in columns]
        last = f"<td class=text>{html.escape('; '.join(row['flags']) or '–')}</td>" if flagged else ""
        lines.append(f"<tr class={row.get('kind', 'model')}>{''.join(f'<td>{cell}</td>' for cell in cells)}{last}</tr>")
    titles = "".join(f"<th>{html.escape(one)}</th>" for one in head) + ("<th class=text>flags</th>" if flagged else "")
    return f"<div class=scroll><table><tr>{titles}</tr>{''.join(lines)}</table></div>"


def _cell(row: Row, key: str) -> str:
    """A number, and below it its interval, p-value and spread, those that it has."""
    if row.get(key) is None:
        return "–"
    low, high, p_value = (row.get(with_end(key, end)) for end in ("low", "high", "p"))
    notes = [] if low is None or high is None else [f"{short(low)} to {short(high)}"]
    notes += [] if p_value is None else [f"p = {p_value:.3g}"]
    notes += [f"sd {row[f'{key}_sd']:.2g}"] if f"{key}_sd" in row else []
    return short(row[key]) + "".join(f"<small>{note}</small>" for note in notes)


def _plain_table(rows: Sequence[Row]) -> str:
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if not key.endswith(("_low", "_high"))]
    head = "".join(f"<th>{html.escape(key.replace('_', ' '))}</th>" for key in keys)
    lines = []
    for row in rows:
        cells = []
        for key in keys:
            value = row.get(key)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            cells.append(_cell(row, key) if number else html.escape(str("–" if value is None else value)))
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>"


# The files

_log = logging.getLogger(__name__)
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
        report: manifest, rows, comparisons and further tables, lists of flat rows; alarms.
        pictures: PNGs by name, written beside and shown on the page.

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
        pictures=[plotted, *pictures.values()],
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
    _log.info("report: %s", ", ".join(str(path) for path in paths.values()))
    return paths


def _check_finite(report: Mapping[str, Any]) -> None:
    for part, rows in report.items():
        for row in rows if isinstance(rows, list) else ():
            for key, value in row.items() if isinstance(row, dict) else ():
                if isinstance(value, float) and not abs(value) < float("inf"):
                    name = row.get("model", row.get("of"))
                    raise ValueError(f"{part}: {key} is {value} for {name!r}: the report holds finite numbers")


def _wide(rows: Sequence[Row]) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _long(report: Mapping[str, Any]) -> str:
    """A line a number, with its interval and p-value where it has them."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["part", "model", "steps", "of", "metric", "value", "low", "high", "p_value"])
    for part in ("rows", "likelihood", "last_words", "correlation", "latent_modes", "cost", "comparisons"):
        for row in report.get(part, ()):
            name = row.get("model") or f"{row['of']} - {row['minus']}"
            of = row.get("set", row.get("batch", row.get("t", row.get("metric", ""))))
            for key, value in row.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if not number or key == "steps" or key.partition("@")[0].endswith(_ENDS):
                    continue
                low, high = (row.get(with_end(key, end), "") for end in ("low", "high"))
                p_value = row.get(f"{key}_p", row.get("p_value", "") if key == "difference" else "")
                writer.writerow([part, name, row.get("steps", ""), of, key, value, low, high, p_value])
    return out.getvalue()
