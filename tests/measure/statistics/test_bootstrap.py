"""Intervals and tests by resampling, of statistics that are computed again and of those that are linearised."""

import numpy as np
import pytest

from di4c_lm.measure.statistics import bootstrap
from di4c_lm.measure.statistics.bootstrap import Interval, Linearised, Resampled, mean, mean_of
from di4c_lm.measure.text.perplexity import token_weighted


def minus(a: np.ndarray, b: np.ndarray, *, resamples: int, seed: int) -> Interval:
    return Resampled(mean, (a,)).minus(Resampled(mean, (b,)), resamples=resamples, seed=seed)


def test_coverage_on_a_known_distribution() -> None:
    """Samples of 60 exponential draws: the 95 % interval holds the true mean 1 in about 93 % (small and skewed)."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(400):
        found = Resampled(mean, (rng.exponential(size=60),)).interval(resamples=400, seed=seed)
        held += found.low <= 1.0 <= found.high
    assert 0.90 <= held / 400 <= 0.97


def test_width_is_that_of_the_normal_distribution() -> None:
    x = np.random.default_rng(1).normal(size=2000)
    found = Resampled(mean, (x,)).interval(resamples=2000, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / np.sqrt(2000), rel=0.08)
    assert found.estimate == pytest.approx(x.mean())


def test_same_seed_same_interval_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = Resampled(token_weighted, (np.random.default_rng(2).exponential(size=30), np.arange(1.0, 31.0)))
    whole = ratio.interval(resamples=101, seed=5)
    monkeypatch.setattr(bootstrap, "_ENTRIES_AT_ONCE", 200)
    assert ratio.interval(resamples=101, seed=5) == whole
    assert ratio.interval(resamples=101, seed=6) != whole


def test_arrays_are_resampled_together() -> None:
    """nll = 2 tokens in every document: the ratio cannot vary, if both follow the same draw."""
    tokens = np.arange(1.0, 20.0)
    found = Resampled(token_weighted, (2 * tokens, tokens)).interval(resamples=50, seed=0)
    assert found.low == pytest.approx(np.exp(2)) and found.high == pytest.approx(np.exp(2))


def test_swap_test_rejects_a_true_null_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    p_values = [
        minus(rng.exponential(size=25), rng.exponential(size=25), resamples=199, seed=i).p_value for i in range(400)
    ]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.085
    assert 0.42 <= np.mean(np.array(p_values) <= 0.5) <= 0.58


def test_pairing_finds_a_difference_that_the_spread_hides() -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(scale=10.0, size=100)
    found = minus(a + 0.5 + 0.1 * rng.normal(size=100), a, resamples=999, seed=0)
    assert found.p_value == pytest.approx(1 / 1000)
    assert 0.4 < found.low < found.estimate < found.high < 0.6


def test_a_model_against_itself_does_not_differ() -> None:
    a = np.random.default_rng(5).normal(size=10)
    found = minus(a, a, resamples=99, seed=0)
    assert (found.estimate, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_named_errors() -> None:
    with pytest.raises(ValueError, match="at least 2 documents, got 1"):
        Resampled(mean, (np.ones(1),)).interval(resamples=10, seed=0)
    with pytest.raises(ValueError, match="arrays must be of one length, got"):
        minus(np.ones(3), np.ones(4), resamples=10, seed=0)


def test_seeds_are_resampled_before_documents() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(4, 1)) * 5 + rng.normal(size=(4, 200))).reshape(-1)

    plain = Resampled(mean, (values,)).interval(resamples=500, seed=0)
    nested = Resampled(mean, (values,), groups=4).interval(resamples=500, seed=0)
    assert nested.high - nested.low > 4 * (plain.high - plain.low)
    with pytest.raises(ValueError, match="800 documents are not 3 blocks"):
        Resampled(mean, (values,), groups=3).interval(resamples=5, seed=0)


@pytest.mark.parametrize("groups", [1, 4])
def test_of_a_mean_it_is_the_bootstrap(groups: int) -> None:
    value_N = np.random.default_rng(0).normal(3, 1, 60)
    found = mean_of(value_N, groups=groups).interval(resamples=200, seed=5)
    plain = Resampled(mean, (value_N,), groups=groups).interval(resamples=200, seed=5)
    assert np.allclose([found.estimate, found.low, found.high], [plain.estimate, plain.low, plain.high])


def test_differences_of_means_reject_at_their_level() -> None:
    p_values = []
    for seed in range(200):
        a, b = np.random.default_rng(seed).normal(size=(2, 80))
        p_values.append(mean_of(a).minus(mean_of(b), resamples=200, seed=seed).p_value)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.11
    assert 0.35 <= np.mean(np.array(p_values) < 0.5) <= 0.65


def test_a_shift_is_found_with_its_sign() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 400))
    found = mean_of(a + 1).minus(mean_of(b), resamples=200, seed=0)
    assert 0.8 < found.low < found.estimate < found.high < 1.2
    assert found.p_value is not None and found.p_value < 1e-6


def test_statistics_without_spread() -> None:
    still = Linearised(estimate=2.0, influence=np.zeros(5))
    assert still.minus(still, resamples=10, seed=0).p_value == 1.0
    assert still.minus(mean_of(np.zeros(5)), resamples=10, seed=0).p_value == 0.0


def test_the_smallest_difference_is_found_four_times_in_five() -> None:
    """Samples of 40: their means differ by just what the interval of one pair calls detectable."""
    rng = np.random.default_rng(6)
    plain = Resampled(mean, (rng.normal(size=4000),))
    other = Resampled(mean, (rng.normal(size=4000),))
    shift = plain.minus(other, resamples=400, seed=0).detectable * np.sqrt(4000 / 40)
    assert shift == pytest.approx(2.80 * np.sqrt(2 / 40), rel=0.1)
    found = [minus(rng.normal(shift, size=40), rng.normal(size=40), resamples=199, seed=i).p_value for i in range(300)]
    assert 0.72 <= np.mean(np.array(found) <= 0.05) <= 0.87
