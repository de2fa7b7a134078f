"""The Fréchet distance: closed forms, laws, a slower way to the same number, and its interval."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.measure.statistics.frechet import (
    Moments,
    extrapolated_frechet,
    frechet_distance,
    linearised_frechet,
    moments,
)


def features(count: int, width: int, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(mean=mean, covariance=covariance, count=1000)


def plain(a: Moments, b: Moments) -> float:
    """As usually written, by the root of a matrix that is not symmetric."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * np.real(root)))


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 12), seed=st.integers(0, 999))
def test_agrees_with_scipy(width: int, seed: int) -> None:
    a, b = moments(features(40, width, seed)), moments(features(50, width, seed + 1))
    assert frechet_distance(a, b) == pytest.approx(plain(a, b), rel=1e-8, abs=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 12), count=st.integers(2, 40), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_set_is_at_distance_0_from_itself_in_any_order(width: int, count: int, scale: float) -> None:
    x = features(count, width, count, scale)
    own = moments(x)
    assert frechet_distance(own, own) <= 1e-9 * np.trace(own.covariance)
    assert frechet_distance(moments(x[::-1]), own) <= 1e-9 * np.trace(own.covariance)


def test_diagonal_gaussians_have_the_closed_form() -> None:
    a, b = gaussian(np.array([1.0, 2.0]), np.diag([4.0, 9.0])), gaussian(np.array([0.0, 4.0]), np.diag([1.0, 25.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 5) ** 2)


def test_a_shift_and_a_scale() -> None:
    x = features(200, 5, 0)
    base = moments(x)
    assert frechet_distance(moments(x + 3), base) == pytest.approx(5 * 9)
    own = np.trace(base.covariance)
    expected = own + (base.mean**2).sum()  # scaled by 2 about the origin: (2 - 1)² of both parts
    assert frechet_distance(moments(2 * x), base) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_turning_both_changes_nothing(seed: int) -> None:
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))[0]
    x, y = features(40, 6, seed), features(40, 6, seed + 1)
    turned = frechet_distance(moments(x @ turn), moments(y @ turn))
    assert turned == pytest.approx(frechet_distance(moments(x), moments(y)), rel=1e-8)


def test_fewer_images_than_features_is_no_trouble() -> None:
    a, b = moments(features(5, 30, 0)), moments(features(8, 30, 1))
    assert frechet_distance(a, b) == pytest.approx(plain(a, b), rel=1e-6)


def test_features_that_are_constant() -> None:
    still = np.ones((10, 3))
    assert frechet_distance(moments(still), moments(still + 2)) == pytest.approx(12)


def test_the_influence_is_the_derivative() -> None:
    """Of the distance along a little more weight for one image."""
    x, reference = features(60, 4, 0), moments(features(80, 4, 1))
    found = linearised_frechet(x, reference)
    assert found.estimate == pytest.approx(frechet_distance(moments(x), reference))
    assert abs(found.influence.mean()) < 1e-9

    def weighted(weight_N: np.ndarray) -> float:
        mean = weight_N @ x
        covariance = (x - mean).T @ ((x - mean) * weight_N[:, None])
        return frechet_distance(gaussian(mean, covariance), reference)

    even, step = np.full(60, 1 / 60), 1e-5
    for n in (0, 17, 59):
        to_n = np.eye(60)[n]
        ahead, behind = (weighted((1 - h) * even + h * to_n) for h in (step, -step))
        assert found.influence[n] == pytest.approx((ahead - behind) / (2 * step), rel=0.05, abs=0.05)


def test_the_interval_is_as_wide_as_the_distance_spreads() -> None:
    """Over fresh samples of the same law, whose mean is not the reference's."""
    rng = np.random.default_rng(0)
    reference = gaussian(np.full(4, 0.7), np.eye(4))
    found = [linearised_frechet(rng.normal(size=(300, 4)) * 1.2, reference) for _ in range(150)]
    spread = np.std([one.estimate for one in found])
    predicted = np.mean([one.influence.std() / np.sqrt(300) for one in found])
    assert predicted == pytest.approx(spread, rel=0.15)
    interval = found[0].interval(resamples=400, seed=0)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * spread, rel=0.25)
    assert interval.low < found[0].estimate < interval.high


def test_extrapolation_takes_the_bias_of_few_images_away() -> None:
    rng = np.random.default_rng(0)
    reference = gaussian(np.zeros(8), np.eye(8))
    samples = [rng.normal(size=(320, 8)) for _ in range(100)]
    biased = np.mean([frechet_distance(moments(x), reference) for x in samples])
    better = [extrapolated_frechet(x, reference) for x in samples]
    assert biased > 0.05
    assert abs(np.mean([value for value in better if value is not None])) < 0.15 * biased


def test_too_few_images_are_not_extrapolated() -> None:
    x = features(32, 8, 0)
    assert extrapolated_frechet(x, moments(x)) is None
    assert extrapolated_frechet(features(36, 8, 0), moments(x)) is not None


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: moments(np.ones((1, 3))), "at least 2 images, found 1"),
        (lambda: moments(np.array([[1.0], [np.nan]])), "finite"),
        (lambda: gaussian(np.zeros(2), np.array([[1.0, 2.0], [0.0, 1.0]])), "symmetric"),
        (lambda: frechet_distance(moments(np.eye(3)), moments(np.eye(4))), "3 and of 4 features"),
    ],
)
def test_bad_moments_are_named(make, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()
