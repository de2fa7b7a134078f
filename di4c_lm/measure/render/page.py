"""A measurement as one page of HTML that refers to nothing outside itself."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from di4c_lm.measure.flow import with_end
from di4c_lm.measure.render.pictures import Row
from di4c_lm.measure.render.tables import short, star

_TITLES = {
    "brier": "BrierLM: validation text continued and filled in",
    "frontier": "Frontier: temperature swept",
    "matched": "Generative perplexity at the same entropy: ratio, below 1 where the first is the more fluent",
    "likelihood": "Likelihood: bounds on perplexity",
    "last_words": "Last words predicted",
    "correlation": "Mixture: correlations (nats)",
    "latent_modes": "Mixture: λ resampled, frozen, averaged",
    "cost": "Cost of sampling",
    "comparisons": "Differences between models, tested",
    "detectable": "Smallest differences that these samples show",
}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#2b2f36;max-width:1180px;margin:2.2em auto;padding:0 1.2em}
h1{font-size:1.6em;margin-bottom:.1em}h2{font-size:1.15em;margin:2em 0 .5em}p.sub{color:#6b7280;margin-top:0}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.34em .6em;text-align:right;border-bottom:1px solid #e3e6ea;white-space:nowrap}
th{color:#6b7280;font-weight:600;border-bottom:2px solid #c9ced6}th:first-child,td:first-child,td.text,th.text{text-align:left}
td small{display:block;color:#6b7280;font-size:11px}tr.data{background:#f4f6f8}tr.canary td{color:#8a5a00}
td.text{white-space:normal;min-width:13em}
.alarm,.fine{padding:.7em 1em;border-radius:6px;margin:1em 0}
.alarm{background:#fde8e4;color:#8c1d0b}.fine{background:#e6f4ec;color:#1c5c3a}
figure{margin:1.2em 0}img{max-width:100%}
details{margin:1.4em 0}pre{font-size:12px;overflow-x:auto;background:#f4f6f8;padding:1em;border-radius:6px}
"""


def page(
    report: Mapping[str, Any],
    *,
    title: str,
    subtitle: str,
    headings: Mapping[str, str],
    details: Mapping[str, str],
    pictures: Mapping[str, bytes],
) -> str:
    """A report, as `write_report` takes it, as one page of HTML: alarms, what counting does, pictures, tables, examples, manifest.

    All that it shows is in it, the `pictures` (PNGs by what they show; those that are empty are left out) among it: it opens anywhere.
    """
    parts = [
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p class=sub>{html.escape(subtitle)}</p>",
        _alarms(report),
        *(
            f"<p class={'alarm' if 'counting beats' in line else 'fine'}>{html.escape(line)}</p>"
            for line in report.get("verdict", ())
        ),
    ]
    for shows, picture in pictures.items():
        if picture:
            source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
            parts.append(f'<figure><img alt="{html.escape(shows)}" src="{source}"></figure>')
    rows = report["rows"]
    if rows:
        parts.append("<h2>Samples beside real data</h2>" + _main_table(rows, headings, flagged="flags" in rows[0]))
    if rows and details:
        parts.append("<h2>More of the same samples</h2>" + _main_table(rows, details, flagged=False))
    if report.get("examples"):
        parts.append("<h2>The first samples, not chosen</h2>" + _examples(report["examples"]))
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


def _examples(examples: Sequence[Row]) -> str:
    lines = [
        f"<tr class={'model' if row['steps'] else 'data'}><td>{html.escape(str(row['model']))}</td><td>{row['steps'] or '–'}</td>"
        f"<td class=text><b>{html.escape(row['prompt'])}</b>{html.escape(row['text'])}</td></tr>"
        for row in examples
    ]
    return f"<table><tr><th>model</th><th>steps</th><th class=text>text</th></tr>{''.join(lines)}</table>"


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
    return short(row[key]) + _starred(row, key) + "".join(f"<small>{note}</small>" for note in notes)


def _starred(row: Row, key: str) -> str:
    return '<span title="beaten by counting">*</span>' if star(row, key) else ""


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
