"""What came of a study: means over seeds with their intervals, as a table and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
MEASURES = {
    "nll": "-log p, nats",
    "pair_tv": "TV of pairs",
    "gen_ppl": "generative perplexity",
    "entropy": "entropy, nats",
}


def measures_of(rows: Sequence[Row]) -> list[str]:
    """The measures that the rows hold."""
    return [name for name in MEASURES if name in rows[0]]


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95 % interval by Student's t; NaN for a single seed."""
    from scipy.stats import t as student_t

    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(student_t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def table(rows: Sequence[Row], measure: str) -> str:
    """Markdown: a line for the data, the teacher and each setting, a column for each number of steps."""
    steps = sorted({row["steps"] for row in rows if row["model"] != "data"})
    lines = [
        f"| {MEASURES[measure]} | " + " | ".join(f"{k} step{'s' * (k > 1)}" for k in steps) + " |",
        "| --- " * (len(steps) + 1) + "|",
    ]
    for name, of_name in _by_name(rows).items():
        cells = []
        for k in steps:
            values = [row[measure] for row in of_name if row["steps"] == k or row["model"] == "data"]
            cells.append(_cell(*summary(values)) if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bars(rows: Sequence[Row], setting: str, measure: str, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """A line for each (K, K'): the student at K steps less the teacher at K', paired by seed, with its 95 % interval."""
    by_name = _by_name(rows)
    lines = []
    for of_student, of_teacher in pairs:
        student = {row["seed"]: row[measure] for row in by_name[setting] if row["steps"] == of_student}
        teacher = {row["seed"]: row[measure] for row in by_name["teacher"] if row["steps"] == of_teacher}
        seeds = sorted(set(student) & set(teacher))
        if seeds:
            mean, half = summary([student[seed] - teacher[seed] for seed in seeds])
            lines.append(
                f"{measure}: student at {of_student} - teacher at {of_teacher} = {mean:+.4g} ± {half:.2g} ({len(seeds)} seeds)"
            )
    return lines


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Quality against steps: data, teacher and every setting in one picture, a panel a measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = measures_of(rows)
    figure, axes = plt.subplots(1, len(names), figsize=(6 * len(names), 4.5), squeeze=False)
    for axis, measure in zip(axes[0], names, strict=True):
        for name, of_name in _by_name(rows).items():
            if of_name[0]["model"] == "data":
                axis.axhline(summary([row[measure] for row in of_name])[0], color="black", linestyle=":", label=name)
                continue
            steps = sorted({row["steps"] for row in of_name})
            found = [summary([row[measure] for row in of_name if row["steps"] == k]) for k in steps]
            style = {"color": "black", "linewidth": 2} if name == "teacher" else {}
            axis.errorbar(
                steps,
                [mean for mean, _ in found],
                [half for _, half in found],
                marker="o",
                capsize=3,
                label=name,
                **style,
            )
        axis.set(
            xscale="log", yscale="linear" if measure == "entropy" else "log", xlabel="steps", ylabel=MEASURES[measure]
        )
        axis.set_xticks(steps, [str(k) for k in steps])
    axes[0, -1].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what they are called: data, teacher, or the student's setting, in this order."""
    found: dict[str, list[Row]] = {}
    for model in ("data", "teacher", "student"):
        for row in rows:
            if row["model"] == model:
                found.setdefault(row["setting"] if model == "student" else model, []).append(row)
    return found


def _cell(mean: float, half: float) -> str:
    digits = 3 if mean < 1 else 2 if mean < 100 else 0
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"
