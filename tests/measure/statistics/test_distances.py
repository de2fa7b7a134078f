"""Distances between samples: against known values, unbiased, and with p-values that hold their level."""

from typing import Any

import numpy as np
import pytest

from di4c_lm.measure.statistics.bootstrap import Distance, Interval, euclidean, half_squared, standardise

RNG = np.random.default_rng(0)


def distance(
    first: np.ndarray, second: np.ndarray, between: Any, *, permutations: int = 199, resamples: int = 100, seed: int = 0
) -> Interval:
    how: dict[str, Any] = {"vectors": first, "reference": second, "between": between}
    return Distance(**how, permutations=permutations).interval(resamples=resamples, seed=seed)


def test_half_squares_make_the_squared_difference_of_means_without_bias() -> None:
    first, second = RNG.normal(size=(2000, 3)) + 0.5, RNG.normal(size=(3000, 3))
    found = distance(first, second, half_squared, permutations=9, resamples=9)
    plain = ((first.mean(0) - second.mean(0)) ** 2).sum()
    correction = first.var(0, ddof=1).sum() / 2000 + second.var(0, ddof=1).sum() / 3000
    assert found.estimate == pytest.approx(plain - correction, rel=1e-9)


def test_the_energy_distance_is_its_definition() -> None:
    first, second = RNG.normal(size=(7, 2)), RNG.normal(size=(5, 2))

    def mean_distance(a: np.ndarray, b: np.ndarray, pairs: int) -> float:
        return float(np.linalg.norm(a[:, None] - b[None], axis=2).sum() / pairs)

    expected = (
        2 * mean_distance(first, second, 35) - mean_distance(first, first, 42) - mean_distance(second, second, 20)
    )
    assert distance(first, second, euclidean).estimate == pytest.approx(expected)


@pytest.mark.parametrize("between", [euclidean, half_squared])
def test_p_values_are_uniform_where_the_distributions_agree_and_small_where_they_do_not(between: Any) -> None:
    same, other = [], []
    for trial in range(60):
        x = np.random.default_rng(trial).normal(size=(40, 2))
        same.append(distance(x[:20], x[20:], between, permutations=99, resamples=2, seed=trial).p_value)
        moved = x + np.where(np.arange(40) < 20, 1.5, 0.0)[:, None]
        other.append(distance(moved[:20], moved[20:], between, permutations=99, resamples=2, seed=trial).p_value)
    assert 0.35 < np.mean(same) < 0.65 and np.mean(np.array(same) <= 0.1) < 0.25
    assert np.mean(np.array(other) <= 0.02) > 0.95


def test_one_text_many_times_is_far_from_the_text_it_is_part_of() -> None:
    data = RNG.normal(size=(80, 4))
    tiled = np.repeat(data[:1], 40, 0)
    found = distance(tiled, data[40:], euclidean)
    assert found.p_value == 1 / 200 and found.low > 0


def test_the_interval_holds_the_true_distance() -> None:
    inside = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        first, second = rng.normal(size=(50, 2)) + 1.0, rng.normal(size=(50, 2))
        found = distance(first, second, half_squared, permutations=2, resamples=200, seed=trial)
        inside += found.low <= 2.0 <= found.high
    assert inside >= 33


def test_the_worse_of_two_models_is_told_and_equal_ones_are_not() -> None:
    rng = np.random.default_rng(1)
    good, bad, data = rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 1, rng.normal(size=(60, 2))

    def minus(a: np.ndarray, b: np.ndarray) -> Interval:
        one, other = (Distance(vectors=x, reference=data, between=euclidean, permutations=199) for x in (a, b))
        return one.minus(other, resamples=100, seed=0)

    worse = minus(bad, good)
    assert worse.estimate > 0 and worse.low > 0
    assert worse.p_value is not None and worse.p_value <= 0.01
    equal = minus(good, rng.normal(size=(60, 2)))
    assert equal.p_value is not None and equal.p_value > 0.05 and equal.low < 0 < equal.high


def test_a_constant_column_is_left_in_scale() -> None:
    data = np.stack([np.arange(4.0), np.full(4, 7.0)], 1)
    found = standardise(data + [0.0, 3.0], data)
    assert np.allclose(found.mean(0), [0, 3]) and np.isclose(found[:, 0].std(), 1)


def test_a_sample_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 documents of each sample, got 1 and 4"):
        distance(np.zeros((1, 2)), np.zeros((4, 2)), euclidean)
