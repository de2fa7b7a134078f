"""The order of an epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from di4c_lm.data.order import permutation


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
