"""From quantities to rows: columns, intervals, tests, and what could not be measured."""

from typing import Any

import numpy as np
import pytest

from di4c_lm.measure.flow import Metric, Missing, Samples, columns, detectable, difference, measured, nfe_of, with_end
from di4c_lm.measure.statistics.bootstrap import Distance, Resampled, euclidean, mean

RESAMPLING = {"resamples": 50, "seed": 3}
VALUES = np.arange(10.0)


def resampled(values: np.ndarray) -> Resampled:
    return Resampled(mean, (values,))


def test_a_quantity_has_its_interval_beside_it_and_a_tested_one_its_p_value() -> None:
    x = np.random.default_rng(0).normal(size=(12, 2))
    distance = Distance(vectors=x, reference=x[::-1].copy(), between=euclidean, permutations=19)
    row = columns({"plain": 3, "entropy": resampled(VALUES), "energy": distance}, **RESAMPLING)
    assert list(row) == [
        "plain",
        "entropy",
        "entropy_low",
        "entropy_high",
        "energy",
        "energy_low",
        "energy_high",
        "energy_p",
    ]
    one = resampled(VALUES).interval(**RESAMPLING)
    assert (row["plain"], row["entropy"], row["entropy_low"], row["entropy_high"]) == (3, 4.5, one.low, one.high)
    assert row["energy_p"] == distance.interval(**RESAMPLING).p_value


def test_ends_stand_before_the_name_of_the_evaluator() -> None:
    assert list(columns({"gen_ppl@big": resampled(VALUES)}, **RESAMPLING)) == [
        "gen_ppl@big",
        "gen_ppl_low@big",
        "gen_ppl_high@big",
    ]
    assert with_end("energy", "p") == "energy_p"


def test_what_could_not_be_measured_has_its_columns_all_the_same() -> None:
    row = columns({"fid": Missing(), "kid": Missing(tested=True)}, **RESAMPLING)
    assert row == dict.fromkeys(["fid", "fid_low", "fid_high", "kid", "kid_low", "kid_high", "kid_p"])


def test_a_difference_is_the_first_less_the_second() -> None:
    row = difference(
        "entropy", {"of": "a", "minus": "b", "steps": 2}, resampled(VALUES + 1), resampled(VALUES), **RESAMPLING
    )
    assert list(row) == [
        "metric",
        "of",
        "minus",
        "steps",
        "difference",
        "difference_low",
        "difference_high",
        "p_value",
        "detectable",
    ]
    assert row["difference"] == 1.0 and row["difference_low"] == pytest.approx(1) and row["p_value"] == 1 / 51


def test_metrics_are_asked_in_turn() -> None:
    def metric(name: str) -> Metric:
        return Metric(measure=lambda samples, bench: {name: (samples.name, bench)}, part="x")

    found: Any = measured(Samples(name="m"), 7, [metric("b"), metric("a")])
    assert found == {"b": ("m", 7), "a": ("m", 7)} and list(found) == ["b", "a"]


def test_calls_are_listed_by_model_and_steps() -> None:
    rows = [{"model": "m", "steps": n, "nfe": n / 2} for n in (1, 4)] + [{"model": "data", "steps": 0, "nfe": 0.0}]
    assert nfe_of(rows) == {"m": {"1": 0.5, "4": 2.0}, "data": {"0": 0.0}}


def test_what_would_have_shown_is_said_of_each_metric_and_without_comparisons_of_the_rows() -> None:
    x = np.random.default_rng(1).normal(size=(4, 200))
    where = {"of": "a", "minus": "b", "steps": 2}
    compared = [difference("entropy", where, resampled(a), resampled(b), **RESAMPLING) for a, b in (x[:2], 3 * x[2:])]
    (row,) = detectable(compared)
    assert (row["metric"], row["comparisons"], row["power"], row["level"]) == ("entropy", 2, 0.8, 0.05)
    assert row["smallest"] == pytest.approx(2.8 * np.sqrt(2 / 200), rel=0.25) and row["largest"] > 2 * row["smallest"]
    rows = [columns({"entropy": resampled(one)}, resamples=2000, seed=0) for one in (x[0], 2 * x[1])]
    assert detectable(compared, rows, ("entropy",)) == [row]
    (alone,) = detectable([], rows, ("entropy", "absent"))
    assert alone["smallest"] == alone["largest"] == pytest.approx(2.8 * np.sqrt(5 / 200), rel=0.15)
