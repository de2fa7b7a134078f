"""Inception Score, kernel distance, precision, recall, density and coverage: bounds, definitions, and what they must tell."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.measure.images import scores as image_scores
from di4c_lm.measure.images.reference import some
from di4c_lm.measure.images.scores import cover, inception_score, kernel_distance


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), classes=st.integers(2, 9), seed=st.integers(0, 99), sharp=st.floats(0.01, 20))
def test_the_inception_score_is_1_to_c(count: int, classes: int, seed: int, sharp: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(count, classes)) * sharp
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = inception_score(p)
    assert 1 - 1e-9 <= found.estimate <= classes + 1e-9
    assert found.estimate == pytest.approx(inception_score(p[::-1]).estimate)
    mean = p.mean(0)
    assert found.estimate == pytest.approx(np.exp((p * np.log(p / mean)).sum(1).mean()))


def test_the_ends_of_the_inception_score() -> None:
    assert inception_score(np.tile(np.eye(5), (4, 1))).estimate == pytest.approx(5)
    assert inception_score(np.tile([0.2, 0.3, 0.5], (9, 1))).estimate == pytest.approx(1)
    assert inception_score(np.eye(3)[np.zeros(7, int)]).estimate == pytest.approx(1)


def test_the_influence_on_the_inception_score_is_its_derivative() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), 30)

    def weighted(weight_N: np.ndarray) -> float:
        mean = weight_N @ p
        return float(np.exp(weight_N @ (p * np.log(p / mean)).sum(1)))

    found, even, step = inception_score(p), np.full(30, 1 / 30), 1e-6
    for n in (0, 11):
        ahead, behind = (weighted((1 - h) * even + h * np.eye(30)[n]) for h in (step, -step))
        assert found.influence[n] == pytest.approx((ahead - behind) / (2 * step), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("rows", [[[0.5, 0.6]], [[1.2, -0.2]], np.zeros((0, 3))])
def test_no_probabilities(rows: list) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        inception_score(np.array(rows, dtype=float))


def slow_kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / len(a) + 1) ** 3

    within = [np.mean([k(a, b) for a, b in itertools.permutations(z, 2)]) for z in (x, y)]
    return float(sum(within) - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_the_kernel_distance_is_that_of_the_definition() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 9, 4))
    found = kernel_distance(x, y + 0.3, permutations=99).interval(resamples=50, seed=0)
    assert found.estimate == pytest.approx(slow_kernel_distance(x, y + 0.3))


def test_the_kernel_distance_is_0_on_average_at_any_size() -> None:
    rng = np.random.default_rng(0)
    found = [
        kernel_distance(*rng.normal(size=(2, 12, 3)), permutations=1).interval(resamples=1, seed=0).estimate
        for _ in range(100)
    ]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(100)


def test_the_kernel_distance_tells_what_differs() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 80, 4))
    same, other = (kernel_distance(x, y + by, permutations=199).interval(resamples=100, seed=0) for by in (0, 0.5))
    assert same.p_value is not None and same.p_value > 0.05
    assert other.p_value is not None and other.p_value < 0.02


def test_a_set_covers_itself() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    found = cover(x, x[::-1].copy(), k_manifold=3, k_density=5)
    assert found["precision"].estimate == found["recall"].estimate == found["coverage"].estimate == 1
    assert found["density"].estimate == pytest.approx(6 / 5)  # each ball holds its own image and its 5 nearest


def slow_cover(x: np.ndarray, y: np.ndarray, k_manifold: int, k_density: int) -> list[float]:
    """Word by word: x the sample, y the reference."""

    def radius(z: np.ndarray, i: int, k: int) -> float:
        return sorted(np.linalg.norm(z - z[i], axis=1))[k] + 1e-9

    def held(point: np.ndarray, z: np.ndarray, k: int) -> list[bool]:
        return [bool(np.linalg.norm(point - z[i]) <= radius(z, i, k)) for i in range(len(z))]

    return [
        float(np.mean([any(held(a, y, k_manifold)) for a in x])),
        float(np.mean([any(held(b, x, k_manifold)) for b in y])),
        float(np.mean([sum(held(a, y, k_density)) / k_density for a in x])),
        float(np.mean([any(held(a, y, k_density)[i] for a in x) for i in range(len(y))])),
    ]


@pytest.mark.filterwarnings("ignore:Could not adhere to working_memory")
@pytest.mark.parametrize("seed", range(3))
def test_cover_is_that_of_the_definitions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(17, 3)), rng.normal(size=(21, 3)) + 0.8
    monkeypatch.setattr(image_scores, "_MIB_AT_ONCE", 1e-4)
    found = cover(x, y, k_manifold=2, k_density=4)
    assert [part.estimate for part in found.values()] == pytest.approx(slow_cover(x, y, 2, 4))


def test_missing_modes_lower_recall_and_coverage_alone() -> None:
    rng = np.random.default_rng(0)
    both = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 50])
    one = rng.normal(size=(200, 2))
    found = cover(one, both)
    assert found["precision"].estimate > 0.9 and found["density"].estimate > 0.7
    assert found["recall"].estimate < 0.55 and found["coverage"].estimate < 0.55


def test_far_away_covers_nothing() -> None:
    x = np.random.default_rng(0).normal(size=(20, 2))
    found = cover(x + 1000, x)
    assert [part.estimate for part in found.values()] == [0, 0, 0, 0]


def test_too_few_images_for_neighbours() -> None:
    with pytest.raises(ValueError, match="at least 6 images of each set, found 5 and 9"):
        cover(np.ones((5, 2)), np.ones((9, 2)))


@pytest.mark.parametrize("count, limit", [(3, 5), (10, 5), (90, 60)])
def test_some_of_many_are_of_every_class(count: int, limit: int) -> None:
    found = some(count, limit)
    assert len(found) == min(count, limit) and sorted(set(found.tolist())) == found.tolist() and found.max() < count
    assert np.array_equal(found, some(count, limit))
    assert len(np.unique(found % 3)) == 3
