"""Samples against a law that is known: exact ones pass, others are found."""

import numpy as np
import pytest

from di4c_lm.data.images.builtin import Bars
from di4c_lm.measure.statistics.exact import check_samples, product_of_marginals, total_variation

LAW = Bars(size=2, levels=3, noise=0.2)


def test_total_variation() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    assert total_variation(p, q) == total_variation(q, p) == 0.5 and total_variation(p, p) == 0


def test_exact_samples_are_at_the_floor() -> None:
    p_values = []
    for seed in range(20):
        found = check_samples(LAW.index(LAW.images(500, seed).states()), LAW.distribution(), repeats=60, seed=seed)
        p_values.append(found.p_value)
        assert abs(found.excess_nats) < 0.3 and found.num_samples == 500
    assert 0.2 < np.mean(p_values) < 0.8


def test_independent_pixels_are_found() -> None:
    product = product_of_marginals(LAW.distribution(), LAW.enumerate())
    index = np.random.default_rng(0).choice(len(product), 500, p=product)
    found = check_samples(index, LAW.distribution(), repeats=60)
    assert found.observed > found.floor_high > found.floor and found.p_value < 0.02 and found.excess_nats > 0.3
    assert found.observed > 0.8 * total_variation(product, LAW.distribution())


def test_the_product_of_marginals_has_the_marginals() -> None:
    outcomes, law = LAW.enumerate(), LAW.distribution()
    product = product_of_marginals(law, outcomes)
    assert product.sum() == pytest.approx(1)
    for states in outcomes.T:
        assert np.allclose(np.bincount(states, weights=product), np.bincount(states, weights=law))


@pytest.mark.parametrize("index", [[], [-1], [81]])
def test_outcomes_that_are_not_there(index: list[int]) -> None:
    with pytest.raises(ValueError, match="outcomes 0 to 80"):
        check_samples(np.array(index, dtype=np.int64), LAW.distribution())


def test_what_is_no_law() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        total_variation(np.array([0.5, 0.6]), np.array([0.5, 0.5]))
