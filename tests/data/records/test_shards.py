"""Folders of shards: what is read from them, and what their index refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from di4c_lm.data.records.shards import INDEX, Index, ShardSource
from tests.data.records.shard_folders import write_shards

D = 3
PARTS = [np.arange(n * D).reshape(n, D) + 100 * k for k, n in enumerate((5, 1, 7, 4))]
ALL = np.concatenate(PARTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path, PARTS)
    return tmp_path


def test_a_sequence_is_that_of_its_sample_id(folder: Path) -> None:
    source = ShardSource(folder, Index.read(folder), seed=4)
    batch = source.read(3, 40)
    assert len(source) == len(ALL) == 17
    assert torch.equal(batch.x, torch.from_numpy(ALL)[batch.sample_id])
    assert batch.epoch.tolist() == [n // 17 for n in range(3, 43)]


def test_what_is_left_out_changes_no_sample_id(folder: Path) -> None:
    source = ShardSource(folder, Index.read(folder), 4, ["train_00000.bin", "train_00002.bin"])
    batch = source.read(0, 10)
    assert sorted(batch.sample_id[:5].tolist()) == [5, 13, 14, 15, 16]
    assert torch.equal(batch.x, torch.from_numpy(ALL)[batch.sample_id])


def test_the_identity_is_that_of_the_shards_in_use(folder: Path) -> None:
    index = Index.read(folder)
    whole, part = ShardSource(folder, index, 0), ShardSource(folder, index, 0, ["train_00001.bin"])
    assert whole.identity == ShardSource(folder, index, 1).identity
    assert whole.identity.startswith("17 sequences in 4 shards")
    assert part.identity.startswith("16 sequences in 3 shards")


def test_no_shard_left_is_an_error(folder: Path) -> None:
    index = Index.read(folder)
    with pytest.raises(ValueError, match=f"{folder}: no shard is left"):
        ShardSource(folder, index, 0, [shard.name for shard in index.train])


def test_an_index_survives_writing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    index = Index.read(folder)
    other = tmp_path_factory.mktemp("other")
    index.write(other)
    assert Index.read(other) == index
    assert (other / INDEX).read_bytes() == (folder / INDEX).read_bytes()


@given(st.data())
def test_any_flipped_byte_of_an_index_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("index")
    index = write_shards(folder, PARTS)
    content = bytearray((folder / INDEX).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (folder / INDEX).write_bytes(content)
    try:
        assert Index.read(folder) == index, "a byte between the values"
    except ValueError as error:
        assert str(folder / INDEX) in str(error)


def test_an_absent_index_and_another_format_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.path=.*absent: no index.json is there.*prepare_shards.py"):
        Index.read(tmp_path / "absent")
    plain = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**plain, "format": 9}))
    with pytest.raises(ValueError, match="format 9, allowed is 1"):
        Index.read(folder)
