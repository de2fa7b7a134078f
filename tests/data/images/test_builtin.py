"""The images that are always there."""

import itertools

import numpy as np
import pytest

from di4c_lm.data.images.builtin import Bars, digits, photograph_patches


@pytest.mark.parametrize("levels, most", [(17, 16), (16, 15), (256, 255)])
def test_digits(levels: int, most: int) -> None:
    found = digits(levels)
    assert found.images.shape == (1797, 8, 8, 1) and found.levels == levels and int(found.images.max()) == most
    assert sorted(np.unique(found.labels)) == list(range(10)) and found.classes == tuple("0123456789")


def test_the_levels_of_digits_agree() -> None:
    raw, fewer, spread = (digits(levels).images.astype(int) for levels in (17, 16, 256))
    assert np.array_equal(fewer, np.minimum(raw, 15)) and np.array_equal(spread, np.rint(raw * 255 / 16))


def test_patches_are_of_two_photographs() -> None:
    train, validation = photograph_patches()
    assert train.classes == validation.classes == ("china", "flower")
    assert len(train) + len(validation) == 3000 and train.shape == validation.shape == (32, 32, 3)
    assert np.bincount(train.labels).tolist() == [len(train) // 2] * 2


@pytest.mark.parametrize("size, stride", [(32, 8), (16, 16), (64, 5)])
def test_no_pixel_is_in_both_parts(size: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On photographs whose pixels name their place."""
    import sklearn.datasets

    rows, columns = np.mgrid[:427, :640]
    place = np.stack([rows // 2, columns // 3, rows % 2 + columns % 3 * 2], 2)

    class Photographs:
        images = [np.stack([*np.moveaxis(place, 2, 0)[:2], place[..., 2] + 6 * n], 2).astype(np.uint8) for n in (0, 1)]
        filenames = ["/somewhere/one.jpg", "/somewhere/two.jpg"]

    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: Photographs)
    parts = [set(map(tuple, part.images.reshape(-1, 3).tolist())) for part in photograph_patches(size, stride=stride)]
    assert not parts[0] & parts[1]
    assert len(parts[0]) > len(parts[1]) > 0


def test_the_seed_chooses_what_is_held_out() -> None:
    first, again, other = (photograph_patches(seed=seed).validation.fingerprint for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: digits(8), "levels must be 16, 17 or 256 for the digits, got 8"),
        (lambda: photograph_patches(65), "size must be 1 to 64 for the patches, got 65"),
        (lambda: photograph_patches(stride=0), "stride must be at least 1, got 0"),
        (lambda: photograph_patches(validation_share=1.0), r"validation_share must be in \(0, 1\), got 1.0"),
    ],
)
def test_impossible_wishes(make, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


LAWS = [Bars(), Bars(size=2, levels=4, noise=0.3), Bars(size=4, levels=2, noise=0.05)]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_law_sums_to_1(law: Bars) -> None:
    assert law.distribution().sum() == pytest.approx(1) and len(law.distribution()) == law.num_images


def test_the_law_is_that_of_the_story() -> None:
    law = Bars(size=2, levels=2, noise=0.3)
    expected = np.zeros(16)
    for bar in law.bars():
        for redrawn in itertools.product([False, True], repeat=4):
            for fresh in itertools.product(range(2), repeat=4):
                x = np.where(redrawn, fresh, bar)
                weight = np.prod([0.3 if r else 0.7 for r in redrawn]) / 16 / 4
                expected[law.index(x[None])[0]] += weight
    assert np.allclose(law.distribution(), expected)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_every_image_has_its_number(law: Bars) -> None:
    assert np.array_equal(law.index(law.enumerate()), np.arange(law.num_images))
    assert law.enumerate().min() == 0 and law.enumerate().max() == law.levels - 1


def test_samples_follow_the_law() -> None:
    law = Bars(size=2, levels=2, noise=0.2)
    index = law.index(law.images(40_000, seed=0).states())
    frequency = np.bincount(index, minlength=16) / 40_000
    assert np.abs(frequency - law.distribution()).max() < 5 * np.sqrt(0.25 / 40_000)


def test_classes_are_rows_and_columns() -> None:
    found = Bars(size=3, noise=1e-9).images(50, seed=0)
    bright = found.images[..., 0] == 2
    assert np.array_equal(bright.all(1).any(1), found.labels == 1)
    assert np.array_equal(bright.all(2).any(1), found.labels == 0) and found.levels == 3


@pytest.mark.parametrize("wish", [{"size": 1}, {"levels": 1}, {"noise": 0.0}, {"size": 5}, {"size": 4, "levels": 3}])
def test_impossible_laws(wish: dict) -> None:
    with pytest.raises(ValueError, match="must be at (least|most) .*, got size="):
        Bars(**wish)
