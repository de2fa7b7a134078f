"""A report on images as files: images.json, images.csv, images.png (scores against steps) and samples.png (the images)."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from di4c_lm.measure.images.report import DATA, ImageReport
from di4c_lm.measure.images.samplers import ImageSampler
from di4c_lm.measure.images.settings import ImageReportConfig
from di4c_lm.measure.render.manifest import manifest
from di4c_lm.measure.render.table import Row, aligned, panel, write_whole

_PANELS = (
    ("fid", "Fréchet distance", "lower is nearer"),
    ("inception_score", "Inception Score", "real images are the mark"),
    ("precision", "precision", "share of samples among real images"),
    ("recall", "recall", "share of real images among samples"),
)
_COLUMNS = {
    "fid": "FID",
    "inception_score": "IS",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "label_agreement": "class right",
}
_SHOWN_ROWS = 48  # pixels an image of samples.png has at least


def publish_images(
    report: ImageReport,
    folder: Path,
    samplers: Sequence[ImageSampler],
    *,
    settings: ImageReportConfig,
    config: Mapping[str, Any],
    checkpoints: Mapping[str, Path],
    dtypes: Mapping[str, str],
) -> dict[str, Path]:
    """Writes images.{json,csv,png} and samples.png into `folder`, each whole or not at all; their paths by kind.

    `config`: the plain values of whatever was configured. `checkpoints`: model name to the folder or file of its weights. Raises as
    `manifest` does, and `ValueError` for a number that JSON cannot hold (infinite, NaN).
    """
    nfe: dict[str, dict[str, float]] = {}
    for row in report.rows:
        nfe.setdefault(row["model"], {})[str(row["steps"])] = row["nfe"]
    facts = manifest(
        config=config,
        checkpoints=checkpoints,
        seed=settings.seeds[0],
        sampler=", ".join(f"{one.name}: {one.facts.get('sampler', 'unnamed')}" for one in samplers),
        nfe=nfe,
        dtypes=dtypes,
        evaluator=report.features,
        seeds=list(settings.seeds),
        protocol=settings.protocol,
        num_samples=settings.each_seed * len(settings.seeds),
        samplers={one.name: dict(one.facts) for one in samplers},
        reference=dict(report.reference),
        against=settings.against,
    )
    whole = {"manifest": facts, "rows": report.rows, "comparisons": report.comparisons}
    sheet = io.StringIO(newline="")
    writer = csv.DictWriter(sheet, fieldnames=list(report.rows[0]))
    writer.writeheader()
    writer.writerows(report.rows)
    contents = {
        "json": (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode(),
        "csv": sheet.getvalue().encode(),
        "png": plot(report),
    }
    paths = write_whole(folder, "images", contents)
    return paths | {"samples": write_whole(folder, "samples", {"png": sample_sheet(report)})["png"]}


def image_table(report: ImageReport) -> str:
    """Plain text for a terminal: which features and reference, a line a model and step count, then the tested differences."""
    kept = {key: title for key, title in _COLUMNS.items() if any(row[key] is not None for row in report.rows)}
    head = ["model", "steps", "NFE", "N", *kept.values(), "FID at ∞"]
    lines = [
        [
            row["model"],
            str(row["steps"] or "-"),
            f"{row['nfe']:.4g}" if row["steps"] else "-",
            str(row["num_samples"]),
            *(_with_interval(row, key) for key in kept),
            _short(row["fid_infinity"]),
        ]
        for row in report.rows
    ]
    count = report.reference["count"] or "an unknown number of"
    told = (
        f"features: {report.features['name']} ({report.features['kind']})\n"
        f"reference: {report.reference['name']}, {count} images, SHA-256 {report.reference['sha256'][:12]}; "
        "an FID depends on both numbers of images"
    )
    text = f"{told}\n\n{aligned(head, lines)}"
    if not report.comparisons:
        return text
    head = ["difference", "steps", "metric", "value", "95 %", "p"]
    lines = [
        [
            f"{c['of']} - {c['minus']}",
            f"{c['steps']} - {c['minus_steps']}",
            _COLUMNS[c["metric"]],
            f"{c['difference']:+.3g}",
            f"{c['difference_low']:+.3g} to {c['difference_high']:+.3g}",
            f"{c['p_value']:.3g}",
        ]
        for c in report.comparisons
    ]
    return f"{text}\n\n{aligned(head, lines)}"


def _with_interval(row: Row, key: str) -> str:
    return (
        f"{_short(row[key])} ({_short(row[f'{key}_low'])} to {_short(row[f'{key}_high'])})"
        if row[key] is not None
        else "-"
    )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"


def plot(report: ImageReport) -> bytes:
    """PNG of FID, Inception Score, precision and recall against steps, where they were measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [one for one in _PANELS if report.rows[0][one[0]] is not None]
    figure = Figure(figsize=(5.2 * len(drawn), 4.6), dpi=140)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1, wspace=0.06)
    panels = np.atleast_1d(figure.subplots(1, len(drawn)))
    for axes, (metric, label, hint) in zip(panels, drawn, strict=True):
        panel(axes, report.rows, metric, data="real images")
        axes.set_title(label, loc="left", fontsize=11.5, fontweight="bold", pad=10)
        axes.set_title(hint, loc="right", fontsize=9, color="#6b7280", pad=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False, fontsize=10)
    figure.suptitle(f"Features: {report.features['kind']}", x=0.012, ha="left", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def sample_sheet(report: ImageReport) -> bytes:
    """PNG of the first images of each row, a line a model and step count, under its name."""
    from PIL import Image, ImageDraw, ImageFont

    strips = [(_title(*cell), strip(images)) for cell, images in report.shown.items()]
    font, gap = ImageFont.load_default(size=14), 6
    width = max(image.shape[1] for _, image in strips) + 2 * gap
    height = sum(image.shape[0] + 22 + gap for _, image in strips) + gap
    sheet = Image.new("RGB", (max(width, 220), height), "white")
    pen, top = ImageDraw.Draw(sheet), gap
    for title, image in strips:
        pen.text((gap, top), title, fill="#2b2f36", font=font)
        sheet.paste(Image.fromarray(image), (gap, top + 20))
        top += image.shape[0] + 22 + gap
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    return buffer.getvalue()


def _title(name: str, steps: int) -> str:
    return "real images" if name == DATA else f"{name}, {steps} step{'s' if steps > 1 else ''}"


def strip(images: UInt8[ndarray, "N H W C"]) -> UInt8[ndarray, "h w 3"]:
    """Images side by side with a white line between them, small ones magnified by whole numbers."""
    scale = max(1, -(-_SHOWN_ROWS // images.shape[1]))
    large = images.repeat(scale, 1).repeat(scale, 2)
    coloured = np.broadcast_to(large, (*large.shape[:3], 3))
    framed = np.pad(coloured, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)
    return np.ascontiguousarray(framed.transpose(1, 0, 2, 3).reshape(framed.shape[1], -1, 3))
