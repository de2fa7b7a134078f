"""The order of an epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from di4c_lm.data.order import drawn, permutation, scattered


@given(st.integers(0, 300), st.integers(0, 2**63), st.integers(0, 10**6))
def test_each_number_is_there_once(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permutation(size, seed, epoch)), np.arange(size))


def test_the_order_is_frozen() -> None:
    """A changed order would change every resumed run and every published trace."""
    assert permutation(8, 0, 0).tolist() == [2, 0, 7, 5, 4, 6, 1, 3]
    assert permutation(8, 1, 2).tolist() == [7, 5, 2, 4, 6, 0, 1, 3]


@pytest.mark.parametrize("other", [(0, 1), (1, 0), (1, 1)])
def test_seeds_and_epochs_differ(other: tuple[int, int]) -> None:
    same = (permutation(1000, 0, 0) == permutation(1000, *other)).sum()
    assert same < 10  # 1 expected by chance


def test_every_place_is_reached_equally_often() -> None:
    """Over 2,000 epochs of 10 samples, sample 0 lands on each place about 200 times (standard deviation 13)."""
    places = np.bincount(
        [int(np.flatnonzero(permutation(10, 3, epoch) == 0)[0]) for epoch in range(2000)], minlength=10
    )
    assert np.abs(places - 200).max() < 65


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 10**6))
def test_each_number_is_scattered_once(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(scattered(np.arange(size), size, seed, epoch)), np.arange(size))


@given(st.integers(1, 2**40), st.data())
def test_a_part_is_scattered_as_the_whole(size: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    together = scattered(np.array(places), size, 7, 1)
    assert together.tolist() == [int(scattered(np.array([place]), size, 7, 1)[0]) for place in places]
    assert len(set(together.tolist())) == len(places)
    assert together.min() >= 0 and together.max() < size


def test_the_scattering_is_frozen() -> None:
    assert scattered(np.arange(8), 8, 0, 0).tolist() == [7, 6, 4, 1, 5, 0, 3, 2]
    assert [drawn(100, 0, 0, number) for number in range(4)] == [45, 71, 22, 44]


@pytest.mark.parametrize("size", [10, 17])
def test_scattering_reaches_every_place_equally_often(size: int) -> None:
    """Over 400 epochs each pair of (place, number) is met about 400 / size times, neighbours as often in either order."""
    orders = np.stack([scattered(np.arange(size), size, 3, epoch) for epoch in range(400)])
    met = np.stack([np.bincount(orders[:, place], minlength=size) for place in range(size)])
    expected = 400 / size
    assert np.abs(met - expected).max() < 5 * expected**0.5
    assert abs((orders[:, 0] < orders[:, 1]).mean() - 0.5) < 0.12


def test_seeds_and_epochs_scatter_differently() -> None:
    first = scattered(np.arange(1000), 1000, 0, 0)
    for other in ((0, 1), (1, 0), (1, 1)):
        assert (first == scattered(np.arange(1000), 1000, *other)).sum() < 10


def test_draws_are_uniform() -> None:
    found = np.bincount([drawn(10, 3, 1, number) for number in range(5000)], minlength=10)
    assert np.abs(found - 500).max() < 110  # 5 standard deviations
