"""Images of an exactly known law."""

import itertools

import numpy as np
import pytest

from di4c_lm.data.images.synthetic_images import Bars

LAWS = [Bars(), Bars(size=2, levels=4, noise=0.3), Bars(size=4, levels=2, noise=0.05)]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_law_sums_to_1(law: Bars) -> None:
    assert law.law().sum() == pytest.approx(1) and len(law.law()) == law.num_images


def test_the_law_is_that_of_the_story() -> None:
    law = Bars(size=2, levels=2, noise=0.3)
    expected = np.zeros(16)
    for bar in law.bars():
        for redrawn in itertools.product([False, True], repeat=4):
            for fresh in itertools.product(range(2), repeat=4):
                x = np.where(redrawn, fresh, bar)
                weight = np.prod([0.3 if r else 0.7 for r in redrawn]) / 16 / 4
                expected[law.index(x[None])[0]] += weight
    assert np.allclose(law.law(), expected)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_every_image_has_its_number(law: Bars) -> None:
    assert np.array_equal(law.index(law.enumerate()), np.arange(law.num_images))
    assert law.enumerate().min() == 0 and law.enumerate().max() == law.levels - 1


def test_samples_follow_the_law() -> None:
    law = Bars(size=2, levels=2, noise=0.2)
    index = law.index(law.images(40_000, seed=0).states())
    frequency = np.bincount(index, minlength=16) / 40_000
    assert np.abs(frequency - law.law()).max() < 5 * np.sqrt(0.25 / 40_000)


def test_classes_are_rows_and_columns() -> None:
    found = Bars(size=3, noise=1e-9).images(50, seed=0)
    bright = found.images[..., 0] == 2
    assert np.array_equal(bright.all(1).any(1), found.labels == 1)
    assert np.array_equal(bright.all(2).any(1), found.labels == 0) and found.levels == 3


@pytest.mark.parametrize("wish", [{"size": 1}, {"levels": 1}, {"noise": 0.0}, {"size": 5}, {"size": 4, "levels": 3}])
def test_impossible_laws(wish: dict) -> None:
    with pytest.raises(ValueError, match="is impossible"):
        Bars(**wish)
