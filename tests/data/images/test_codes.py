"""Images as codes: written in one pass that may be cut, read back checked."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from di4c_lm.data.batches import BatchStream
from di4c_lm.data.images.codes import CodeJob, load_codes, save_codes, write_codes
from di4c_lm.data.images.sources import Fit, Line, RawImage, RawImages
from di4c_lm.data.records.shards import Index, ShardSource, is_shards
from tests.data.images.pictures import pixels, png

CODES, LENGTH = 200, 3


def encode(images: np.ndarray) -> np.ndarray:
    """Three numbers of each image, which tell it and its mirror image apart."""
    first, last = images[:, 0, 0, 0].astype(np.int64), images[:, 0, -1, 0].astype(np.int64)
    return np.stack([first, last, first + last], 1) % CODES


def raw(count: int, *, bad: tuple[int, ...] = (), label: Callable[[int], int] = lambda n: n % 3) -> RawImages:
    def read() -> Line:
        for n in range(count):
            fault = "torn" if n in bad else ""
            yield RawImage(f"image {n}", png(pixels(n)), label(n), fault)

    return RawImages(name="some", classes=("a", "b", "c"), open=read)


def job(images: RawImages, **options: Any) -> CodeJob:
    return CodeJob(raw=images, fit=Fit(), num_codes=CODES, length=LENGTH, codec="v", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_codes_and_classes_come_back(tmp_path: Path) -> None:
    index = write_codes(tmp_path, job(raw(7), shard_images=3, batch_size=2), encode)
    assert [shard.rows for shard in index.train] == [3, 3, 1] and Index.read(tmp_path) == index
    found = load_codes(tmp_path)
    assert is_shards(tmp_path) and len(found) == 7
    assert np.array_equal(found.states(), encode(np.stack([pixels(n) for n in range(7)])))
    assert found.labels().tolist() == [0, 1, 2, 0, 1, 2, 0]
    of = found.index
    assert (of.classes, of.coder, of.num_states, of.length) == (("a", "b", "c"), "v", CODES, LENGTH)


def test_mirrored_images_are_rows_too(tmp_path: Path) -> None:
    write_codes(tmp_path, job(raw(3), mirror=True, batch_size=8), encode)
    images = np.stack([pixels(n) for n in range(3)])
    rows = load_codes(tmp_path).states()
    assert np.array_equal(rows, np.concatenate([encode(images), encode(images[:, :, ::-1])]))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(count=st.integers(1, 9), size=st.integers(1, 4), cut=st.integers(0, 9), bad=st.sets(st.integers(0, 8)))
def test_a_cut_anywhere_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int, cut: int, bad: set[int]
) -> None:
    if not set(range(count)) - bad:
        return
    whole, torn = (tmp_path_factory.mktemp("codes") for _ in range(2))
    of = {"shard_images": size, "skip_bad": True}
    images = raw(count, bad=tuple(bad))
    write_codes(whole, job(images, **of), encode)
    left = itertools.count()

    def failing(batch: np.ndarray) -> np.ndarray:
        if next(left) == cut:
            raise OSError("disk full")
        return encode(batch)

    try:
        write_codes(torn, job(images, **of), failing)
    except OSError:
        assert not is_shards(torn)
    write_codes(torn, job(images, **of), encode)
    assert contents(whole) == contents(torn)
    assert load_codes(torn).skipped == len(bad & set(range(count)))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_hold_every_image_once(tmp_path: Path, parts: int) -> None:
    for part in range(1, parts + 1):
        write_codes(tmp_path / f"part_{part}_of_{parts}", job(raw(7), part=part, parts=parts), encode)
        if part < parts:
            with pytest.raises(ValueError, match=f"expected the parts 1 to {parts}, found no part"):
                load_codes(tmp_path)
    rows = load_codes(tmp_path).states()
    assert sorted(map(tuple, rows)) == sorted(map(tuple, encode(np.stack([pixels(n) for n in range(7)]))))


def test_a_source_gives_each_row_once_an_epoch_and_any_position(tmp_path: Path) -> None:
    write_codes(tmp_path, job(raw(7), shard_images=2), encode)
    codes = load_codes(tmp_path)
    source = ShardSource(codes, seed=1)
    two = source.read(0, 14)
    assert sorted(two.sample_id[:7].tolist()) == sorted(two.sample_id[7:].tolist()) == list(range(7))
    assert two.sample_id[:7].tolist() != two.sample_id[7:].tolist() and two.epoch.tolist() == [0] * 7 + [1] * 7
    assert np.array_equal(two.x.numpy(), codes.states()[two.sample_id.numpy()])
    assert two.labels is not None
    assert np.array_equal(two.labels.numpy(), codes.labels()[two.sample_id.numpy()])
    later = source.read(5, 4)
    assert later.x.equal(two.x[5:9]) and later.labels is not None and later.labels.equal(two.labels[5:9])
    batch = next(BatchStream(source, micro_batch_size=3))
    assert batch.x.equal(two.x[:3])


def test_codes_in_memory(tmp_path: Path) -> None:
    codes, labels = np.arange(12).reshape(4, 3), np.array([0, 1, 1, 0])
    given_ = {"num_codes": 12, "classes": ("a", "b"), "codec": "v", "made_by": {}}
    save_codes(tmp_path, codes, labels, **given_)
    found = load_codes(tmp_path)
    assert np.array_equal(found.states(), codes) and np.array_equal(found.labels(), labels)
    with pytest.raises(ValueError, match="expected labels 0 to 1, found 1 outside: image 2 has label 2"):
        save_codes(tmp_path, codes, np.array([0, 1, 2, 0]), **given_)


def damaged(folder: Path, how: str) -> None:
    shard = folder / "train_00001.bin"
    if how == "missing":
        shard.unlink()
    elif how == "short":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif how == "changed":
        shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
    elif how == "index":
        (folder / "index.json").write_text("{")
    elif how == "other index":
        (folder / "index.json").write_text('{"kind": "text", "format": 1}')
    else:
        (folder / "index.json").unlink()


@pytest.mark.parametrize(
    "how, message",
    [
        ("missing", "train_00001.bin: missing: expected 16 bytes"),
        ("short", "train_00001.bin: truncated: expected 16 bytes .*, found 15 bytes"),
        ("changed", "train_00001.bin: corrupt: expected 16 bytes"),
        ("index", "index.json: expected a JSON file, could not read it"),
        ("other index", "index.json: damaged: expected checksum None"),
        ("no index", "no index.json: expected a folder that .*di4c prepare codes.* has finished"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, how: str, message: str) -> None:
    write_codes(tmp_path, job(raw(5), shard_images=2), encode)
    damaged(tmp_path, how)
    with pytest.raises(ValueError, match=message):
        load_codes(tmp_path)


def test_what_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image 1: torn \(skip_bad=true skips"):
        write_codes(tmp_path / "bad", job(raw(3, bad=(1,))), encode)
    with pytest.raises(ValueError, match="image 0: expected a label 0 to 2, found 3"):
        write_codes(tmp_path / "label", job(raw(3, label=lambda n: n + 3)), encode)
    write_codes(tmp_path / "whole", job(raw(3)), encode)
    with pytest.raises(ValueError, match="holds shards made with mirror False, now it is True"):
        write_codes(tmp_path / "whole", job(raw(3), mirror=True), encode)
    for options, message in (
        ({"part": 3, "parts": 2}, "part must be 1 to parts=2, got 3"),
        ({"shard_images": 0}, "shard_images must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            job(raw(1), **options)
