"""Rows of a measurement as files and as a table: gen_ppl.json, gen_ppl.csv, gen_ppl.png."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from di4c_lm.core.files import write_bytes

Row: TypeAlias = Mapping[str, Any]
_INK, _GRID, _DATA = "#2b2f36", "#e3e6ea", "#6b7280"
_COLOURS = ("#3b6fb6", "#d9603b", "#2f9e78", "#8e5bb5", "#c59a1b")  # told apart by the colour-blind too
_MARKERS = ("o", "D", "s", "^", "v")
_PANELS = (
    ("gen_ppl", "generative perplexity", "lower is more fluent"),
    ("entropy", "sample entropy (nats)", "held-out text is the mark"),
)


def write_report(
    folder: Path,
    rows: Sequence[Row],
    *,
    manifest: Row,
    comparisons: Sequence[Row] = (),
    name: str = "gen_ppl",
    title: str = "",
) -> dict[str, Path]:
    """Writes `<name>.json`, `.csv` and `.png` into `folder`, each whole or not at all, and returns their paths by kind.

    Raises `ValueError` for no rows and for a number that JSON cannot hold (infinite, NaN).
    """
    if not rows:
        raise ValueError("there are 0 rows to report")
    whole = {"manifest": manifest, "rows": list(rows), "comparisons": list(comparisons)}
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    contents = {
        "json": (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode(),
        "csv": sheet.getvalue().encode(),
        "png": plot(rows, title=title),
    }
    return write_whole(folder, name, contents)


def write_whole(folder: Path, name: str, contents: Mapping[str, bytes]) -> dict[str, Path]:
    """Writes `<name>.<kind>` for each kind, whole or not at all, and returns their paths by kind."""
    paths = {}
    for kind, content in contents.items():
        paths[kind] = folder / f"{name}.{kind}"
        write_bytes(paths[kind], content)
    return paths


def table(rows: Sequence[Row], comparisons: Sequence[Row] = ()) -> str:
    """Aligned plain text for a terminal: a line a row with its 95 % intervals, then the tested differences."""
    head = ["model", "steps", "NFE", "gen. perplexity", "95 %", "entropy", "95 %", "samples"]
    lines = [
        [
            str(row["model"]),
            str(row["steps"] or "-"),
            f"{row['nfe']:.4g}" if row["steps"] else "-",
            _short(row["gen_ppl"]),
            f"{_short(row['gen_ppl_low'])} to {_short(row['gen_ppl_high'])}",
            f"{row['entropy']:.3f}",
            f"{row['entropy_low']:.3f} to {row['entropy_high']:.3f}",
            str(row["num_samples"]),
        ]
        for row in rows
    ]
    text = aligned(head, lines)
    if not comparisons:
        return text
    head = ["difference", "steps", "metric", "value", "95 %", "p"]
    lines = [
        [
            f"{c['of']} - {c['minus']}",
            str(c["steps"]),
            str(c["metric"]),
            f"{c['difference']:+.3g}",
            f"{c['difference_low']:+.3g} to {c['difference_high']:+.3g}",
            f"{c['p_value']:.3g}",
        ]
        for c in comparisons
    ]
    return f"{text}\n\n{aligned(head, lines)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def aligned(head: list[str], lines: list[list[str]]) -> str:
    """Columns of equal width: the first to the left, the others to the right, under a rule."""
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in (head, rule, *lines)
    )


def plot(rows: Sequence[Row], *, title: str = "") -> bytes:
    """PNG of generative perplexity (log axis) and entropy against steps: a line a model, a band for held-out text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.6), dpi=160)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1, wspace=0.06)
    panels = figure.subplots(1, 2)
    for axes, (metric, label, hint) in zip(panels, _PANELS, strict=True):
        panel(axes, rows, metric)
        axes.set_title(label, loc="left", fontsize=11.5, color=_INK, fontweight="bold", pad=10)
        axes.set_title(hint, loc="right", fontsize=9, color=_DATA, pad=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, color=_INK, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def panel(axes: Any, rows: Sequence[Row], metric: str, *, data: str = "held-out text") -> None:
    """Draw a metric with its intervals against steps: a line a model, and a band, called `data`, for the rows of the model "data"."""
    models = [name for name in dict.fromkeys(row["model"] for row in rows) if name != "data"]
    for i, name in enumerate(models):
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: row["steps"])
        value = [row[metric] for row in own]
        below = [max(0.0, row[metric] - row[f"{metric}_low"]) for row in own]
        above = [max(0.0, row[f"{metric}_high"] - row[metric]) for row in own]
        axes.errorbar(
            [row["steps"] for row in own],
            value,
            yerr=[below, above],
            label=name,
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=6.5,
            markeredgecolor="white",
            markeredgewidth=0.9,
            linewidth=2.0,
            elinewidth=1.4,
            capsize=3.5,
            zorder=3,
        )
    for row in (row for row in rows if row["model"] == "data"):
        axes.axhspan(row[f"{metric}_low"], row[f"{metric}_high"], color=_DATA, alpha=0.16, linewidth=0, zorder=1)
        axes.axhline(row[metric], color=_DATA, linewidth=1.4, linestyle=(0, (5, 3)), label=data, zorder=2)
    _dress(axes, sorted({row["steps"] for row in rows if row["model"] != "data"}), log=metric == "gen_ppl")


def _dress(axes: Any, steps: list[int], *, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if steps:
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, [str(n) for n in steps])
        axes.set_xlim(steps[0] / 1.25, steps[-1] * 1.25)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sampling steps", color=_INK)
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        wide = high / low > 30
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else (1, 1.5, 2, 3, 4, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, axis="y", which="major", color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, which="both", labelsize=9.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9aa1ab")
