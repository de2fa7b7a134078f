import numpy as np
import pytest

from di4c_lm.measure.statistics import bootstrap
from di4c_lm.measure.text.perplexity import token_weighted


def mean(x: np.ndarray) -> np.ndarray:
    return np.asarray(x.mean(-1))


def test_coverage_on_a_known_distribution() -> None:
    """Samples of 60 exponential draws: the 95 % interval holds the true mean 1 in about 93 % (small and skewed)."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(400):
        found = bootstrap.interval(mean, [rng.exponential(size=60)], resamples=400, seed=seed)
        held += found.low <= 1.0 <= found.high
    assert 0.90 <= held / 400 <= 0.97


def test_width_is_that_of_the_normal_law() -> None:
    x = np.random.default_rng(1).normal(size=2000)
    found = bootstrap.interval(mean, [x], resamples=2000, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / np.sqrt(2000), rel=0.08)
    assert found.estimate == pytest.approx(x.mean())


def test_same_seed_same_interval_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.random.default_rng(2).exponential(size=30), np.arange(1.0, 31.0)]
    whole = bootstrap.interval(token_weighted, arrays, resamples=101, seed=5)
    monkeypatch.setattr(bootstrap, "_ENTRIES_AT_ONCE", 200)
    assert bootstrap.interval(token_weighted, arrays, resamples=101, seed=5) == whole
    assert bootstrap.interval(token_weighted, arrays, resamples=101, seed=6) != whole


def test_arrays_are_resampled_together() -> None:
    """nll = 2 tokens in every document: the ratio cannot vary, if both follow the same draw."""
    tokens = np.arange(1.0, 20.0)
    found = bootstrap.interval(token_weighted, [2 * tokens, tokens], resamples=50, seed=0)
    assert found.low == pytest.approx(np.exp(2)) and found.high == pytest.approx(np.exp(2))


def test_swap_test_rejects_a_true_null_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    p_values = [
        bootstrap.paired_difference(
            mean, [rng.exponential(size=25)], [rng.exponential(size=25)], resamples=199, seed=i
        ).p_value
        for i in range(400)
    ]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.085
    assert 0.42 <= np.mean(np.array(p_values) <= 0.5) <= 0.58


def test_pairing_finds_a_difference_that_the_spread_hides() -> None:
    rng = np.random.default_rng(4)
    a = rng.normal(scale=10.0, size=100)
    found = bootstrap.paired_difference(mean, [a + 0.5 + 0.1 * rng.normal(size=100)], [a], resamples=999, seed=0)
    assert found.p_value == pytest.approx(1 / 1000)
    assert 0.4 < found.low < found.estimate < found.high < 0.6


def test_a_model_against_itself_does_not_differ() -> None:
    a = np.random.default_rng(5).normal(size=10)
    found = bootstrap.paired_difference(mean, [a], [a], resamples=99, seed=0)
    assert (found.estimate, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_named_errors() -> None:
    with pytest.raises(ValueError, match="at least 2 documents, got 1"):
        bootstrap.interval(mean, [np.ones(1)], resamples=10, seed=0)
    with pytest.raises(ValueError, match=r"one length are needed, got \[3, 4\]"):
        bootstrap.paired_difference(mean, [np.ones(3)], [np.ones(4)], resamples=10, seed=0)


def test_seeds_are_resampled_before_documents() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(4, 1)) * 5 + rng.normal(size=(4, 200))).reshape(-1)

    plain = bootstrap.interval(mean, (values,), resamples=500, seed=0)
    nested = bootstrap.interval(mean, (values,), resamples=500, seed=0, groups=4)
    assert nested.high - nested.low > 4 * (plain.high - plain.low)
    with pytest.raises(ValueError, match="800 documents are not 3 blocks"):
        bootstrap.interval(mean, (values,), resamples=5, seed=0, groups=3)
