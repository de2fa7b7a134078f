"""The whole evaluation as files: report.json, report.csv, report.png, and report.html, one page that holds all of it."""

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from di4c_lm.measure.render.table import Row, aligned, panel, write_whole
from di4c_lm.measure.text.suite import REAL

_PANELS = (
    ("gen_ppl", "generative perplexity", "lower is more fluent"),
    ("entropy", "sample entropy (nats)", "held-out text is the mark"),
    ("gradient_moment", "gradient moment", "0: not told from text"),
    ("energy", "energy distance", "0: not told from text"),
)
_FIRST = {
    "gen_ppl": "perplexity",
    "entropy": "entropy",
    "near_duplicates": "near-dup.",
    "gradient_moment": "gradient moment",
    "energy": "energy",
    "mauve": "MAUVE",
}
_SECOND = {
    "gen_ppl_doc": "perplexity, by document",
    "order_gain": "order gain",
    "corpus_entropy": "corpus entropy",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "rep_4": "Rep-4",
    "self_bleu": "Self-BLEU",
    "self_bleu_legacy": "Self-BLEU, legacy",
    "energy_hand": "energy (counts)",
    "tail_rate": "rare tokens drawn",
}
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


def write_suite(folder: Path, report: Mapping[str, Any], *, title: str) -> dict[str, Path]:
    """Writes report.json, .csv, .png and .html into `folder`, each whole or not at all, and returns their paths by kind.

    `report` holds manifest, rows, comparisons, alarms and, where they were measured, likelihood, last_words, correlation, latent_modes,
    cost: lists of flat rows. Raises `ValueError` for a number that JSON cannot hold (infinite, NaN), naming its row.
    """
    for part, rows in report.items():
        for row in rows if isinstance(rows, list) else ():
            for key, value in row.items() if isinstance(row, dict) else ():
                if isinstance(value, float) and not abs(value) < float("inf"):
                    raise ValueError(
                        f"{part}: {key} is {value} for {row.get('model', row.get('of'))!r}: the report holds finite numbers"
                    )
    picture = plot_suite(report["rows"])
    contents = {
        "json": (json.dumps(report, indent=2, allow_nan=False) + "\n").encode(),
        "csv": _sheet(report).encode(),
        "html": page(report, title=title, picture=picture).encode(),
    }
    return write_whole(folder, "report", contents | ({"png": picture} if picture else {}))


def _sheet(report: Mapping[str, Any]) -> str:
    """Long form: a line a number, with its interval and p-value where it has them."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["part", "model", "steps", "of", "metric", "value", "low", "high", "p_value"])
    for part in ("rows", "likelihood", "last_words", "correlation", "latent_modes", "cost", "comparisons"):
        for row in report.get(part, ()):
            name = row.get("model") or f"{row['of']} - {row['minus']}"
            of = row.get("set", row.get("batch", row.get("t", row.get("metric", ""))))
            ends = ("_low", "_high", "_p", "p_value")
            for key, value in row.items():
                bare, at, evaluator = key.partition("@")
                if (
                    isinstance(value, bool)
                    or not isinstance(value, int | float)
                    or bare.endswith(ends)
                    or key == "steps"
                ):
                    continue
                low, high = (row.get(f"{bare}_{end}{at}{evaluator}", "") for end in ("low", "high"))
                p_value = row.get(f"{key}_p", row.get("p_value", "") if key == "difference" else "")
                writer.writerow([part, name, row.get("steps", ""), of, key, value, low, high, p_value])
    return out.getvalue()


def plot_suite(rows: Sequence[Row]) -> bytes:
    """PNG of models against steps in those of perplexity, entropy, gradient moment and energy that were measured; empty where none was."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [
        row | {"model": "data"} if row["model"] == REAL else row for row in map(dict, rows) if row["kind"] != "canary"
    ]
    present = [one for one in _PANELS if shown and all(one[0] in row for row in shown)]
    if not present or all(row["model"] == "data" for row in shown):
        return b""
    lines = (len(present) + 1) // 2
    figure = Figure(figsize=(10.4, 3.9 * lines + 0.5), dpi=150)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    every = figure.subplots(lines, min(2, len(present)), squeeze=False).ravel()
    for axes in every[len(present) :]:
        axes.set_visible(False)
    for axes, (metric, label, hint) in zip(every, present, strict=False):
        panel(axes, shown, metric)
        axes.set_title(label, loc="left", fontsize=11.5, fontweight="bold", pad=10)
        axes.set_title(hint, loc="right", fontsize=9, color="#6b7280", pad=10)
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def page(report: Mapping[str, Any], *, title: str, picture: bytes) -> str:
    """One HTML page without links: alarms, picture, tables, manifest."""
    manifest = report["manifest"]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)}</h1><p class=sub>{html.escape(_subtitle(manifest))}</p>",
        _verdict(report),
    ]
    if picture:
        encoded = base64.b64encode(picture).decode()
        parts.append(f'<img alt="metrics against steps" src="data:image/png;base64,{encoded}">')
    if report["rows"]:
        parts.append("<h2>Samples beside held-out text</h2>" + _main_tables(report["rows"]))
    for part, heading in _TITLES.items():
        if report.get(part):
            parts.append(f"<h2>{heading}</h2>" + _plain_table(report[part]))
    source = html.escape(json.dumps(manifest, indent=2, ensure_ascii=False))
    parts.append(f"<details><summary>Manifest</summary><pre>{source}</pre></details></html>")
    return "\n".join(parts) + "\n"


def _subtitle(manifest: Mapping[str, Any]) -> str:
    evaluators = ", ".join(str(one["name"]) for one in manifest["judge"]["judges"])
    return (
        f"{manifest['time']} · commit {manifest['commit'][:12]} · {manifest['length']} tokens a sample · sampler {manifest['sampler']}, "
        f"noise {manifest['dtypes']['noise']} · judged by {evaluators} · 95 % intervals below each number"
    )


def _verdict(report: Mapping[str, Any]) -> str:
    canaries = [row for row in report["rows"] if row["kind"] == "canary"]
    if report["alarms"]:
        names = html.escape("; ".join(report["alarms"]))
        return f"<p class=alarm>Do not trust these numbers: the suite did not catch {names}.</p>"
    return f"<p class=fine>All {len(canaries)} canaries were flagged or ranked last.</p>" if canaries else ""


def _main_tables(rows: Sequence[Row]) -> str:
    scored = {key: f"perplexity, {key[8:]}" for row in rows for key in row if key.startswith("gen_ppl@")}
    first = _main_table(rows, _FIRST | scored, flagged=True)
    return first + "<h2>More of the same samples</h2>" + _main_table(rows, _SECOND, flagged=False)


def _main_table(rows: Sequence[Row], labels: Mapping[str, str], *, flagged: bool) -> str:
    columns = [(key, label) for key, label in labels.items() if any(key in row for row in rows)]
    head = ["model", "steps", "NFE", "rank", *(label for _, label in columns)]
    lines = []
    for row in rows:
        texts = [
            str(row["model"]),
            str(row["steps"] or "–"),
            f"{row['nfe']:.3g}" if row["nfe"] else "–",
            str(row["rank"] or "–"),
        ]
        cells = [html.escape(text) for text in texts] + [_cell(row, key) for key, _ in columns]
        last = f"<td class=text>{html.escape('; '.join(row['flags']) or '–')}</td>" if flagged else ""
        lines.append(f"<tr class={row['kind']}>{''.join(f'<td>{cell}</td>' for cell in cells)}{last}</tr>")
    titles = "".join(f"<th>{html.escape(one)}</th>" for one in head) + ("<th class=text>flags</th>" if flagged else "")
    return f"<div class=scroll><table><tr>{titles}</tr>{''.join(lines)}</table></div>"


def _cell(row: Row, key: str) -> str:
    if key not in row:
        return "–"
    name, at, evaluator = key.partition("@")
    low, high = row.get(f"{name}_low{at}{evaluator}"), row.get(f"{name}_high{at}{evaluator}")
    notes = [] if low is None or high is None else [f"{short(low)} to {short(high)}"]
    notes += [f"p = {row[f'{key}_p']:.3g}"] if f"{key}_p" in row else []
    notes += [f"sd {row['mauve_sd']:.2g}"] if key == "mauve" else []
    return short(row[key]) + "".join(f"<small>{note}</small>" for note in notes)


def _plain_table(rows: Sequence[Row]) -> str:
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if not key.endswith(("_low", "_high"))]
    head = "".join(f"<th>{html.escape(key.replace('_', ' '))}</th>" for key in keys)
    lines = []
    for row in rows:
        cells = []
        for key in keys:
            value = row.get(key)
            other = isinstance(value, bool) or not isinstance(value, int | float)
            cells.append(f"<td>{html.escape(str('–' if value is None else value)) if other else _cell(row, key)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def short(value: int | float) -> str:
    """A number in as few characters as tell it."""
    if isinstance(value, int):
        return f"{value:,}"
    return (
        f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.4g}"
        if abs(value) >= 1e-3 or value == 0
        else f"{value:.1e}"
    )


def terminal_table(report: Mapping[str, Any]) -> str:
    """The rows of samples in plain text, with flags, then the alarms."""
    keys = [
        key
        for key in ("gen_ppl", "entropy", "gradient_moment", "energy", "mauve")
        if key in (report["rows"] or [{}])[0]
    ]
    lines = [
        [
            str(row["model"]),
            str(row["steps"] or "-"),
            str(row["rank"] or "-"),
            *(short(row[key]) for key in keys),
        ]
        for row in report["rows"]
    ]
    text = aligned(["model", "steps", "rank", *keys], lines) if lines else ""
    flagged = [
        f"{row['model']}, {row['steps'] or '-'} steps: {'; '.join(row['flags'])}"
        for row in report["rows"]
        if row["flags"]
    ]
    text += "\n\nflagged, so not ranked\n" + "\n".join(flagged) if flagged else ""
    for part in ("likelihood", "last_words", "correlation", "latent_modes", "cost"):
        rows = report.get(part) or []
        names = [key for key in (rows[0] if rows else {}) if not key.endswith(("_low", "_high", "_sd"))]
        plain = [[short(v) if isinstance(v := row.get(key), float) else str(v) for key in names] for row in rows]
        text += f"\n\n{part}\n{aligned(names, plain)}" if rows else ""
    return text.strip() + "".join(f"\nNOT CAUGHT: {name}" for name in report["alarms"])
