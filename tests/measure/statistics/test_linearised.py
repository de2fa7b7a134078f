"""Intervals by influence functions: of means they are the bootstrap's own, and differences reject at their level."""

import numpy as np
import pytest

from di4c_lm.measure.statistics.bootstrap import interval
from di4c_lm.measure.statistics.linearised import Linearised, difference_of, interval_of, mean_of


@pytest.mark.parametrize("groups", [1, 4])
def test_of_a_mean_it_is_the_bootstrap(groups: int) -> None:
    value_N = np.random.default_rng(0).normal(3, 1, 60)
    found = interval_of(mean_of(value_N, groups=groups), resamples=200, seed=5)
    plain = interval(lambda v: v.mean(-1), (value_N,), resamples=200, seed=5, groups=groups)
    assert np.allclose([found.estimate, found.low, found.high], [plain.estimate, plain.low, plain.high])


def test_differences_of_means_reject_at_their_level() -> None:
    p_values = []
    for seed in range(200):
        a, b = np.random.default_rng(seed).normal(size=(2, 80))
        p_values.append(difference_of(mean_of(a), mean_of(b), resamples=200, seed=seed).p_value)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.11
    assert 0.35 <= np.mean(np.array(p_values) < 0.5) <= 0.65


def test_a_shift_is_found_with_its_sign() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 400))
    found = difference_of(mean_of(a + 1), mean_of(b), resamples=200, seed=0)
    assert 0.8 < found.low < found.estimate < found.high < 1.2 and found.p_value < 1e-6


def test_statistics_without_spread() -> None:
    still = Linearised(estimate=2.0, influence=np.zeros(5))
    assert difference_of(still, still, resamples=10, seed=0).p_value == 1.0
    assert difference_of(still, mean_of(np.zeros(5)), resamples=10, seed=0).p_value == 0.0
