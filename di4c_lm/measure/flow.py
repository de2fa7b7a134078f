"""The one flow of a measurement: samples, what metrics make of them, a row of numbers with intervals, differences with tests.

A metric is one file of `measure/text` or `measure/images` and one entry of the registry there, METRICS.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal, TypeAlias, final

from di4c_lm.core.terminal import progress_bar
from di4c_lm.measure.statistics.bootstrap import LEVEL, POWER, WIDTH, Quantity, smallest_difference

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What one model gave at one step count, `seeds` blocks of equally many; real data and canaries have 0 steps."""

    name: str
    kind: Literal["model", "baseline", "canary", "data"] = "model"
    steps: int = 0
    nfe: float = 0.0
    seeds: int = 1
    seconds: float = 0.0


@final
@dataclass(frozen=True, kw_only=True)
class Metric:
    """Columns of a report.

    Args:
        measure: samples and the workbench of their kind to quantities and plain numbers by the name of their column.
        part: of the report; the metrics of a part are measured together or not at all.
        headings: of the columns in tables; of each evaluator but the first they are name@evaluator.
        details: of those columns that stand in a table of their own.
        compared: the columns of which differences between models are tested.
    """

    measure: Callable[[Any, Any], Mapping[str, Any]]
    part: str
    headings: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, str] = field(default_factory=dict)
    compared: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Missing:
    """In place of a quantity that could not be measured: its columns hold None."""

    tested: bool = False


@final
@dataclass(frozen=True, kw_only=True)
class Measured:
    """`rows`: one a model and step count. `comparisons`: one a pair of models, step count and metric. `alarms`: canaries not caught.

    `examples`: some of the samples, as they are shown.
    """

    rows: list[Row]
    comparisons: list[Row]
    alarms: list[str] = field(default_factory=list)
    examples: list[Row] = field(default_factory=list)


def sampled(
    samplers: Mapping[str, Callable[[int, int], tuple[Any, float]]],
    shape: tuple[int, ...],
    *,
    steps: Sequence[int],
    seeds: Sequence[int],
    progress: bool,
) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """What every sampler makes of each step count and seed: a batch a seed, and the name, steps, nfe, seeds and seconds of `Samples`.

    Raises `ValueError` for a batch of another `shape`.
    """
    bar = progress_bar(
        [(*item, n) for item in samplers.items() for n in steps], desc="evaluating", unit="row", disable=not progress
    )
    for name, sampler, n in bar:
        bar.set_postfix_str(f"{name}, {n} steps")
        start = time.perf_counter()
        made = [sampler(n, seed) for seed in seeds]
        facts = {"name": name, "steps": n, "seeds": len(seeds), "seconds": time.perf_counter() - start}
        for batch, _ in made:
            if tuple(batch.shape) != shape:
                found = tuple(batch.shape)
                raise ValueError(f"sampler {name!r} at {n} steps gave samples of shape {found}, expected {shape}")
        yield [batch for batch, _ in made], {**facts, "nfe": fmean(nfe for _, nfe in made)}


def measured(samples: Samples, bench: Any, metrics: Iterable[Metric]) -> Row:
    """The quantities and plain numbers of all `metrics`, by column."""
    return {key: value for metric in metrics for key, value in metric.measure(samples, bench).items()}


def columns(values: Mapping[str, Any], *, resamples: int, seed: int) -> Row:
    """What a row holds of values: plain numbers as they are, of a quantity its estimate, `_low`, `_high`, and `_p` where it is tested."""
    row: Row = {}
    for key, value in values.items():
        if not isinstance(value, Quantity | Missing):
            row[key] = value
            continue
        one = None if isinstance(value, Missing) else value.interval(resamples=resamples, seed=seed)
        row[key] = getattr(one, "estimate", None)
        row |= {with_end(key, end): getattr(one, end, None) for end in ("low", "high")}
        row |= {with_end(key, "p"): getattr(one, "p_value", None)} if value.tested else {}
    return row


def difference(metric: str, where: Mapping[str, Any], a: Quantity, b: Any, *, resamples: int, seed: int) -> Row:
    """The tested difference a - b as a row; `where` says of which models and steps, `detectable` what it would have had to be to show.

    `detectable` is None where no resample differs from another: then the samples say nothing of it.
    """
    one = a.minus(b, resamples=resamples, seed=seed)
    value = {"difference": one.estimate, "difference_low": one.low, "difference_high": one.high}
    return {"metric": metric, **where, **value, "p_value": one.p_value, "detectable": one.detectable or None}


def detectable(comparisons: Iterable[Row], rows: Sequence[Row] = (), metrics: Sequence[str] = ()) -> list[Row]:
    """Of each metric the smallest true differences that these samples show in 80 % of all cases at the level 5 %.

    A row holds metric, `smallest` and `largest` of the `detectable` of its comparisons, `comparisons`, how many they are, power and level.
    Of those `metrics` that no two models were compared in, the differences are those of each of `rows` from the first, real data, by the
    width of their intervals.
    """
    found: dict[str, list[float]] = {}
    for one in comparisons:
        if one["detectable"] is not None:
            found.setdefault(one["metric"], []).append(one["detectable"])
    for metric in metrics:
        if metric not in found and len(rows) > 1 and all(metric in row for row in rows):
            first, *others = (row[with_end(metric, "high")] - row[with_end(metric, "low")] for row in rows)
            found[metric] = [smallest_difference(math.hypot(first, width) / WIDTH) for width in others]
    how = {"power": POWER, "level": LEVEL}
    return [
        {"metric": metric, "smallest": min(of_metric), "largest": max(of_metric), "comparisons": len(of_metric), **how}
        for metric, of_metric in found.items()
    ]


def with_end(key: str, end: str) -> str:
    """The column of an interval's end: gen_ppl@evaluator, low -> gen_ppl_low@evaluator."""
    name, at, evaluator = key.partition("@")
    return f"{name}_{end}{at}{evaluator}"


def nfe_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Network calls by model and step count, as a manifest holds them."""
    calls: dict[str, dict[str, float]] = {}
    for row in rows:
        calls.setdefault(row["model"], {})[str(row["steps"])] = row["nfe"]
    return calls
