"""Laws of image sets and of the batches made of them."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.data.batches import BatchStream
from di4c_lm.data.images.images import ImageSet, ImageSource, images_of, is_mirrored, to_bytes


def image_set(count: int = 12, shape: tuple[int, int, int] = (4, 3, 3), levels: int = 256, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    images = rng.integers(levels, size=(count, *shape)).astype(np.uint8)
    return ImageSet(images=images, labels=np.arange(count) % 3, classes=("a", "b", "c"), name="noise", levels=levels)


@pytest.mark.parametrize("shape", [(4, 3, 3), (5, 2, 1)])
def test_states_and_back(shape: tuple[int, int, int]) -> None:
    images = image_set(shape=shape)
    states_ND = torch.from_numpy(images.states().astype(np.int64))
    assert np.array_equal(images_of(states_ND, shape), images.images)


def test_positions_are_channel_row_column() -> None:
    images = image_set(2, (4, 3, 3))
    assert images.states()[1, (2 * 4 + 3) * 3 + 1] == images.images[1, 3, 1, 2]


@pytest.mark.parametrize(
    "states, shape, told", [([[0, 1, 2]], (2, 2, 1), "3 positions"), ([[0, 256]], (1, 2, 1), "256 are no bytes")]
)
def test_what_is_no_image(states: list[list[int]], shape: tuple[int, int, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        images_of(torch.tensor(states), shape)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 40), share=st.floats(0.001, 0.999), seed=st.integers(0, 2**31))
def test_a_split_parts_the_set(count: int, share: float, seed: int) -> None:
    images = image_set(count)
    train, validation = images.split(share, seed)
    rows = sorted(x.tobytes() for part in (train, validation) for x in part.images)
    assert rows == sorted(x.tobytes() for x in images.images)
    assert len(train) >= 1 and len(validation) >= 1 and abs(len(validation) - count * share) <= 1
    of = {x.tobytes(): label for x, label in zip(images.images, images.labels, strict=True)}
    assert all(of[x.tobytes()] == y for x, y in zip(validation.images, validation.labels, strict=True))


def test_splits_differ_by_seed_alone() -> None:
    images = image_set(40)
    first, again, other = (images.split(0.3, seed).validation.fingerprint for seed in (1, 1, 2))
    assert first == again != other


def test_the_fingerprint_knows_pixels_and_labels_and_not_names() -> None:
    images = image_set()
    same = images.select(np.arange(len(images)), "another name")
    assert same.fingerprint == images.fingerprint
    changed = images.images.copy()
    changed[3, 1, 1, 1] ^= 1
    others = [
        ImageSet(images=changed, labels=images.labels, classes=images.classes, name="x"),
        ImageSet(images=images.images, labels=images.labels[::-1].copy(), classes=images.classes, name="x"),
        ImageSet(images=images.images, labels=images.labels, classes=("a", "b", "d"), name="x"),
    ]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize(
    "change, told",
    [
        ({"images": np.zeros((0, 4, 4, 3), np.uint8), "labels": np.zeros(0, np.int64)}, "at least one image"),
        ({"images": np.zeros((12, 4, 4, 2), np.uint8)}, "1 or 3 channels"),
        ({"labels": np.full(12, 3)}, "labels 0 to 2, found 12 outside: image 0 has label 3"),
        ({"labels": np.full(12, -1)}, "has label -1"),
        ({"levels": 16}, "below levels=16"),
        ({"levels": 1}, "levels=1"),
    ],
)
def test_bad_sets_are_named(change: dict, told: str) -> None:
    good = image_set()
    fields = {"images": good.images, "labels": good.labels, "classes": good.classes, "name": "a set", "levels": 256}
    with pytest.raises(ValueError, match=f"a set: expected .*{told}"):
        ImageSet(**{**fields, **change})


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5])
def test_an_impossible_share(share: float) -> None:
    with pytest.raises(ValueError, match="validation_share"):
        image_set().split(share, 0)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="at least 2 images to split, found 1"):
        image_set(1).split(0.5, 0)


def test_batches_carry_the_images_with_their_labels() -> None:
    images = image_set(10)
    batch = ImageSource(images, seed=4).read(5, 12)
    assert torch.equal(batch.x, torch.from_numpy(images.states().astype(np.int64))[batch.sample_id])
    assert batch.labels is not None and torch.equal(batch.labels, torch.from_numpy(images.labels)[batch.sample_id])
    assert batch.epoch.tolist() == [0] * 5 + [1] * 7
    assert batch.x.dtype == batch.labels.dtype == torch.int64


def test_streams_and_strata_keep_the_labels() -> None:
    images = image_set(10)
    batch = next(BatchStream(ImageSource(images, seed=4), micro_batch_size=5, stratified=True))
    assert batch.labels is not None and torch.equal(batch.labels, torch.from_numpy(images.labels)[batch.sample_id])
    assert batch.stratum is not None and sorted(batch.stratum.tolist()) == list(range(5))


def test_a_run_resumes_only_with_the_same_images() -> None:
    images, other = image_set(10), image_set(10)
    changed = other.images.copy()
    changed[3, 0, 0, 0] ^= 1
    identity = ImageSource(images, seed=4).identity
    assert identity == ImageSource(other, seed=5).identity
    assert identity != ImageSource(dataclasses.replace(other, images=changed), seed=4).identity
    assert identity != ImageSource(images, seed=4, flip=True).identity


def test_flips_mirror_whole_images_as_keyed() -> None:
    images = image_set(30, (4, 5, 3))
    batch = ImageSource(images, seed=4, flip=True).read(0, 60)
    mirrored_B = is_mirrored(4, batch.sample_id.numpy(), batch.epoch.numpy())
    expected = np.where(
        mirrored_B[:, None, None, None], images.images[batch.sample_id][:, :, ::-1], images.images[batch.sample_id]
    )
    assert np.array_equal(images_of(batch.x, images.shape), expected)
    assert 0 < mirrored_B.sum() < 60


def test_a_mirror_is_a_fair_coin_of_each_key() -> None:
    sample, epoch = (part.ravel() for part in np.meshgrid(np.arange(200), np.arange(100)))
    coin = is_mirrored(0, sample, epoch).reshape(100, 200)
    assert abs(coin.mean() - 0.5) < 4 * 0.5 / np.sqrt(coin.size)
    assert abs((coin[1:] == coin[:-1]).mean() - 0.5) < 4 * 0.5 / np.sqrt(coin.size)
    assert abs((coin == is_mirrored(1, sample, epoch).reshape(100, 200)).mean() - 0.5) < 4 * 0.5 / np.sqrt(coin.size)


def test_levels_are_spread_over_bytes() -> None:
    ramp = np.arange(17, dtype=np.uint8).reshape(1, 1, 17, 1)
    assert to_bytes(ramp, 17).ravel().tolist() == [round(v * 255 / 16) for v in range(17)]
    assert np.array_equal(to_bytes(ramp, 256), ramp)
