"""A measurement as pictures: numbers against steps, and images beside each other."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

Row: TypeAlias = Mapping[str, Any]
INK, GREY, _GRID = "#2b2f36", "#6b7280", "#e3e6ea"
# Okabe and Ito's, which the colour-blind tell apart too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#000000")
_MARKERS = ("o", "D", "s", "^", "v", "P")
_SHOWN_ROWS = 48  # pixels an image of a sheet has at least


@final
@dataclass(frozen=True)
class Panel:
    """A metric in a picture of its own, with its name and how to read it."""

    metric: str
    label: str
    hint: str
    log: bool = False


def is_beaten(row: Row, metric: str) -> bool:
    """Whether counting, an n-gram or token bigrams, beats this row of a model: said of generative perplexity, by whichever evaluator."""
    return bool(row.get("beaten_by")) and metric.partition("@")[0] == "gen_ppl"


def plot(rows: Sequence[Row], panels: Sequence[Panel], *, data: str, title: str = "") -> bytes:
    """PNG of those metrics that all rows but canaries hold, against steps: a line a model, a band, called `data`, for real data.

    Empty where no such metric, or no model, was measured.
    """
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.get("kind") != "canary"]
    present = [panel for panel in panels if all(row.get(panel.metric) is not None for row in shown)]
    if not present or all(_is_data(row) for row in shown):
        return b""
    across = 2 if len(present) in (2, 4) else min(3, len(present))
    lines = -(-len(present) // across)
    figure = Figure(figsize=(5.2 * across, 3.9 * lines + 0.7), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, wspace=0.06)
    every = figure.subplots(lines, across, squeeze=False).ravel()
    for axes in every[len(present) :]:
        axes.set_visible(False)
    for axes, panel in zip(every, present, strict=False):
        _draw(axes, shown, panel, data)
        axes.set_title(panel.label, loc="left", fontsize=11.5, color=INK, fontweight="bold", pad=10)
        is_marked = any(is_beaten(row, panel.metric) for row in shown)
        hint = f"{panel.hint}, hollow: beaten by counting" if is_marked else panel.hint
        axes.set_title(hint, loc="right", fontsize=9, color=GREY, pad=10)
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False, fontsize=10)
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=12.5, color=INK, fontweight="bold")
    return _png(lambda buffer: figure.savefig(buffer, format="png", facecolor="white"))


def frontier_plot(rows: Sequence[Row]) -> bytes:
    """PNG of generative perplexity against entropy: a line a model and step count, through its temperatures, paler the fewer steps.

    What has one point alone, counting and real data, is a mark. Empty where no model has rows.
    """
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows if row["kind"] == "model"))
    if not models:
        return b""
    figure = Figure(figsize=(8.4, 4.6), dpi=150)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    steps = sorted({row["steps"] for row in rows if row["kind"] == "model"})
    for model, n in dict.fromkeys((row["model"], row["steps"]) for row in rows if row["kind"] == "model"):
        own = [row for row in rows if (row["model"], row["steps"]) == (model, n)]
        own.sort(key=lambda row: row["entropy"])
        i = models.index(model)
        how = {"color": _COLOURS[i % len(_COLOURS)], "alpha": 0.35 + 0.65 * (steps.index(n) + 1) / len(steps)}
        x, y = ([row[key] for row in own] for key in ("entropy", "gen_ppl"))
        marker = _MARKERS[i % len(_MARKERS)]
        errors = [[max(0.0, sign * (row[f"gen_ppl_{end}"] - row["gen_ppl"])) for row in own] for end, sign in _ERRORS]
        axes.errorbar(x, y, yerr=errors, label=f"{model}, {n}", marker=marker, markersize=5, capsize=2.5, **how)
    for row in rows:
        if row["kind"] != "model":
            name = row["model"] if row["steps"] < 2 else f"{row['model']}, {row['steps']}"
            axes.plot(row["entropy"], row["gen_ppl"], "*" if row["kind"] == "data" else "x", color=GREY, markersize=9)
            where = {"textcoords": "offset points", "xytext": (5, 4), "fontsize": 8.5, "color": GREY}
            axes.annotate(name, (row["entropy"], row["gen_ppl"]), **where)
    axes.set_yscale("log")
    axes.set_xlabel("sample entropy (nats)", color=INK)
    axes.set_title("generative perplexity", loc="left", fontsize=11.5, color=INK, fontweight="bold", pad=10)
    axes.set_title("lower at the same entropy is better", loc="right", fontsize=9, color=GREY, pad=10)
    axes.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5), title="model, steps")
    _plain(axes)
    return _png(lambda buffer: figure.savefig(buffer, format="png", facecolor="white"))


_ERRORS = (("low", -1.0), ("high", 1.0))


def training_curves(metrics: Sequence[Row]) -> bytes:
    """PNG of loss and gradient norm against updates, of a run's logged steps; empty where there are fewer than two."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if len(metrics) < 2:
        return b""
    figure = Figure(figsize=(10.4, 3.0), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12, wspace=0.06)
    for axes, (key, label) in zip(figure.subplots(1, 2), _CURVES.items(), strict=True):
        shown = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
        axes.plot(*zip(*shown, strict=True), color=_COLOURS[0], linewidth=1.6)
        axes.set_title(label, loc="left", fontsize=11.5, color=INK, fontweight="bold", pad=10)
        axes.set_xlabel("updates", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _plain(axes)
    return _png(lambda buffer: figure.savefig(buffer, format="png", facecolor="white"))


_CURVES = {"loss": "loss", "grad_norm": "gradient norm"}


def _is_data(row: Row) -> bool:
    return row.get("kind") == "data" or row["model"] == "data"


def _draw(axes: Any, rows: Sequence[Row], panel: Panel, data: str) -> None:
    """A metric with its intervals; hollow where counting beats the model."""
    metric, models = panel.metric, dict.fromkeys(row["model"] for row in rows if not _is_data(row))
    for i, name in enumerate(models):
        own = sorted((row for row in rows if row["model"] == name), key=lambda row: row["steps"])
        below = [max(0.0, row[metric] - row[f"{metric}_low"]) for row in own]
        above = [max(0.0, row[f"{metric}_high"] - row[metric]) for row in own]
        style = {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)], "markersize": 6.5}
        axes.errorbar(
            [row["steps"] for row in own],
            [row[metric] for row in own],
            yerr=[below, above],
            label=name,
            **style,
            markeredgecolor="white",
            markeredgewidth=0.9,
            linewidth=2.0,
            elinewidth=1.4,
            capsize=3.5,
            zorder=3,
        )
        hollow = [row for row in own if is_beaten(row, metric)]
        where = [row["steps"] for row in hollow], [row[metric] for row in hollow]
        axes.plot(*where, **style, markerfacecolor="white", linestyle="none", zorder=4)
    for row in filter(_is_data, rows):
        axes.axhspan(row[f"{metric}_low"], row[f"{metric}_high"], color=GREY, alpha=0.16, linewidth=0, zorder=1)
        axes.axhline(row[metric], color=GREY, linewidth=1.4, linestyle=(0, (5, 3)), label=data, zorder=2)
    _dress(axes, sorted({row["steps"] for row in rows if not _is_data(row)}), log=panel.log)


def _dress(axes: Any, steps: list[int], *, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks(steps, [str(n) for n in steps])
    axes.set_xlim(steps[0] / 1.25, steps[-1] * 1.25)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("sampling steps", color=INK)
    if log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        wide = high / low > 30
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide else (1, 1.5, 2, 3, 4, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(visible=True, axis="y", which="major", color=_GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, which="both", labelsize=9.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9aa1ab")


def sample_sheet(images: Mapping[str, UInt8[ndarray, "N H W C"]]) -> bytes:
    """PNG of images under their names, a line a name."""
    from PIL import Image, ImageDraw, ImageFont

    strips = [(title, strip(of)) for title, of in images.items()]
    font, gap = ImageFont.load_default(size=14), 6
    width = max(image.shape[1] for _, image in strips) + 2 * gap
    height = sum(image.shape[0] + 22 + gap for _, image in strips) + gap
    sheet = Image.new("RGB", (max(width, 220), height), "white")
    pen, top = ImageDraw.Draw(sheet), gap
    for title, image in strips:
        pen.text((gap, top), title, fill=INK, font=font)
        sheet.paste(Image.fromarray(image), (gap, top + 20))
        top += image.shape[0] + 22 + gap
    return _png(lambda buffer: sheet.save(buffer, format="PNG"))


def tiles(images: UInt8[ndarray, "N H W C"], across: int) -> bytes:
    """PNG of images in rows of `across`, with white or, of four channels, transparent lines between them."""
    from PIL import Image

    absent = -len(images) % across
    channels = max(3, images.shape[3])
    room = np.pad(images, ((0, absent), (0, 0), (0, 0), (0, 0)), constant_values=_blank(channels))
    rows = [strip(row) for row in np.split(room, len(room) // across)]
    framed = [np.pad(row, ((0, 2), (0, 0), (0, 0)), constant_values=_blank(channels)) for row in rows]
    sheet = Image.fromarray(np.concatenate(framed)[:-2, :-2])
    return _png(lambda buffer: sheet.save(buffer, format="PNG"))


def strip(images: UInt8[ndarray, "N H W C"]) -> UInt8[ndarray, "h w c"]:
    """Images side by side with a line between them, small ones magnified by whole numbers: in three channels, or four as they are."""
    scale = max(1, -(-_SHOWN_ROWS // images.shape[1]))
    large = images.repeat(scale, 1).repeat(scale, 2)
    channels = max(3, images.shape[3])
    coloured = np.broadcast_to(large, (*large.shape[:3], channels))
    framed = np.pad(coloured, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=_blank(channels))
    return np.ascontiguousarray(framed.transpose(1, 0, 2, 3).reshape(framed.shape[1], -1, channels))


def _blank(channels: int) -> int:
    """White, or where there are four channels what is seen through."""
    return 0 if channels == 4 else 255


def _png(save: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()
