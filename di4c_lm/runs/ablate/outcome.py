"""What came of a study: means over seeds with their intervals, as a table and as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from di4c_lm.measure.text.gen_ppl import verdict

Row = dict[str, Any]
MEASURES = {
    "nll": "-log p, nats",
    "pair_tv": "TV of pairs",
    "accuracy": "right answers",
    "factorisation_nats": "factorisation error, nats",
    "gen_ppl": "generative perplexity",
    "entropy": "entropy, nats",
    "copied_8": "copied from the training text",
    "nats": "nats over the teacher's product",
    "worst_tv": "worst position's total variation from the teacher's marginal",
}


def measures_of(rows: Sequence[Row]) -> list[str]:
    """The measures that the rows hold."""
    return [name for name in MEASURES if name in rows[0]]


def over_runs(rows: Sequence[Row], measure: str) -> dict[Any, float]:
    """The values that an interval is over: one a seed, or where there are several teachers one a teacher, the mean over its seeds."""
    by = "teacher" if len({row.get("teacher") for row in rows}) > 1 else "seed"
    found: dict[Any, list[float]] = {}
    for row in rows:
        found.setdefault(row[by], []).append(row[measure])
    return {one: float(np.mean(values)) for one, values in found.items()}


def summary(values: Sequence[float]) -> tuple[float, float]:
    """Mean over seeds and the half-width of its 95 % interval by Student's t; NaN for a single seed."""
    from scipy.stats import t as student_t

    count = len(values)
    if count < 2:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(student_t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def table(rows: Sequence[Row], measure: str, *, along: str = "steps") -> str:
    """Markdown: a line for the data, the teacher and each setting, a column for each number of steps, or each time t."""
    columns = sorted({row[along] for row in rows if row["model"] != "data"}, reverse=along == "t")
    heads = [f"t = {k:g}" if along == "t" else f"{k} step{'s' * (k > 1)}" for k in columns]
    lines = [f"| {MEASURES[measure]} | " + " | ".join(heads) + " |", "| --- " * (len(columns) + 1) + "|"]
    for name, of_name in _by_name(rows).items():
        cells = []
        for k in columns:
            chosen = [row for row in of_name if row[along] == k or row["model"] == "data"]
            said = _cell(*summary([*over_runs(chosen, measure).values()])) if chosen else ""
            is_beaten = measure == "gen_ppl" and _always_beaten_by(of_name, k)
            cells.append(f"{said} *" if is_beaten else said)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bars(rows: Sequence[Row], setting: str, measure: str, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """A line for each (K, K'): the student at K steps less the teacher at K', paired by seed or teacher, with its 95 % interval."""
    by_name = _by_name(rows)
    lines = []
    if setting not in by_name:  # rows of operations
        return lines
    for of_student, of_teacher in pairs:
        student = over_runs([row for row in by_name[setting] if row["steps"] == of_student], measure)
        teacher = over_runs([row for row in by_name["teacher"] if row["steps"] == of_teacher], measure)
        shared = [one for one in student if one in teacher]
        if shared:
            mean, half = summary([student[one] - teacher[one] for one in shared])
            over = "teachers" if isinstance(shared[0], str) else "seeds"
            spread = "" if math.isnan(half) else f" ± {half:.2g}"
            lines.append(
                f"{measure}: student at {of_student} - teacher at {of_teacher} = {mean:+.4g}{spread} ({len(shared)} {over})"
            )
    return lines


def beaten(rows: Sequence[Row]) -> str:
    """A sentence a model: at which numbers of steps which n-grams beat it in every run; nothing of rows that do not say."""
    return verdict(
        [
            {"model": name, "steps": k, "beaten_by": _always_beaten_by(of_name, k)}
            for name, of_name in _by_name(rows).items()
            for k in sorted({row["steps"] for row in of_name if "beaten_by" in row})
        ]
    )


def _always_beaten_by(rows: Sequence[Row], steps: int) -> list[str]:
    """What beats a model, of which these are the rows, at so many steps in every run."""
    said = [row.get("beaten_by", []) for row in rows if row["steps"] == steps]
    return [one for one in said[0] if all(one in others for others in said)] if said else []


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
                level = summary([*over_runs(of_name, measure).values()])[0]
                axis.axhline(level, color="black", linestyle=":", label=name)
                continue
            steps = sorted({row["steps"] for row in of_name})
            at_step = [[row for row in of_name if row["steps"] == k] for k in steps]
            found = [summary([*over_runs(some, measure).values()]) for some in at_step]
            style = {"color": "black", "linewidth": 2} if name == "teacher" else {}
            line = axis.errorbar(
                steps,
                [mean for mean, _ in found],
                [half for _, half in found],
                marker="o",
                capsize=3,
                label=name,
                **style,
            )
            hollow = [k for k in steps if measure == "gen_ppl" and _always_beaten_by(of_name, k)]
            levels = [found[steps.index(k)][0] for k in hollow]
            how = {"color": line[0].get_color(), "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
            axis.plot(hollow, levels, **how, zorder=4)
        scale = "linear" if measure in ("entropy", "copied_8") else "log"
        axis.set(xscale="log", yscale=scale, xlabel="steps", ylabel=MEASURES[measure])
        axis.set_xticks(steps, [str(k) for k in steps])
    axes[0, -1].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _by_name(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what they are called: data, other models that need no network, teacher, or the student's setting, in this order.

    Each operation, of rows that have one, is by itself.
    """
    found: dict[str, list[Row]] = {}
    operations = [*dict.fromkeys(row.get("operation") for row in rows)]
    rank = {"data": 0, "teacher": 2, "student": 3}
    for row in sorted(rows, key=lambda row: (operations.index(row.get("operation")), rank.get(row["model"], 1))):
        name = row["setting"] if row["model"] == "student" else row["model"]
        found.setdefault(f"{row['operation']}: {name}" if "operation" in row else name, []).append(row)
    return found


def _cell(mean: float, half: float) -> str:
    digits = 3 if mean < 1 else 2 if mean < 100 else 0
    mean = round(mean, digits) + 0.0  # no -0
    return f"{mean:.{digits}f}" if math.isnan(half) else f"{mean:.{digits}f} ± {half:.{digits}f}"
