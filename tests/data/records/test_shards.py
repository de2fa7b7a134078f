"""Folders of shards: what is read from them, and what their index refuses."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from di4c_lm.core.files import checksum
from di4c_lm.data.records.shards import INDEX, How, Index, Shard, Shards, ShardSource, blake2b, row_dtype
from tests.data.records.helpers import write_shards

D = 3
PARTS = [np.arange(n * D).reshape(n, D) + 100 * k for k, n in enumerate((5, 1, 7, 4))]
ALL = np.concatenate(PARTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path, PARTS)
    return tmp_path


def test_a_sequence_is_that_of_its_sample_id(folder: Path) -> None:
    source = ShardSource(Shards.read(folder), seed=4)
    batch = source.read(3, 40)
    assert len(source) == len(ALL) == 17
    assert torch.equal(batch.x, torch.from_numpy(ALL)[batch.sample_id])
    assert batch.epoch.tolist() == [n // 17 for n in range(3, 43)]


def test_what_is_left_out_changes_no_sample_id(folder: Path) -> None:
    for name in ("train_00000.bin", "train_00002.bin"):
        (folder / name).unlink()
    source = ShardSource(Shards.read(folder).verified(skip_bad=True), 4)
    batch = source.read(0, 10)
    assert sorted(batch.sample_id[:5].tolist()) == [5, 13, 14, 15, 16]
    assert torch.equal(batch.x, torch.from_numpy(ALL)[batch.sample_id])


def test_the_identity_is_that_of_the_shards_in_use(folder: Path) -> None:
    whole = ShardSource(Shards.read(folder), 0)
    (folder / "train_00001.bin").unlink()
    part = ShardSource(Shards.read(folder).verified(skip_bad=True), 0)
    assert whole.identity == ShardSource(Shards.read(folder), 1).identity
    assert whole.identity.startswith("17 sequences in 4 shards")
    assert part.identity.startswith("16 sequences in 3 shards")


def test_no_shard_left_is_an_error(folder: Path) -> None:
    for path in folder.glob("train_*.bin"):
        path.unlink()
    with pytest.raises(ValueError, match=f"{folder}: no shard is left"):
        Shards.read(folder).verified(skip_bad=True)


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
    with pytest.raises(ValueError, match=r"absent: no index.json: expected a folder that .*di4c prepare shards"):
        Index.read(tmp_path / "absent")
    plain = json.loads((folder / INDEX).read_text())
    write_index(folder, {**plain, "format": 9})
    with pytest.raises(ValueError, match="not of format 2 or 1 .*: make the shards again with .di4c prepare shards."):
        Index.read(folder)


def write_index(folder: Path, plain: dict[str, Any]) -> None:
    """`plain` as an index under the checksum of its own."""
    plain.pop("checksum", None)
    seal = hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()
    (folder / INDEX).write_text(json.dumps({**plain, "checksum": seal}))


def old_shard(shard: Shard, **counts: int) -> dict[str, Any]:
    return {"name": shard.name, **counts, "size": shard.size, "blake2b": shard.blake2b}


def test_tokens_of_format_1_still_load(folder: Path) -> None:
    now, index = Shards.read(folder), Index.read(folder)
    assert index.validation is not None
    facts = {"length": D, "wrap": True, "dtype": "<u2", "num_states": 1 << 16, "eos_id": 7, "tokenizer": "none"}
    shards = [old_shard(shard, sequences=shard.rows) for shard in (*index.train, index.validation)]
    sides = {"train": shards[:-1], "validation": shards[-1]}
    write_index(folder, {"format": 1, **facts, "made_by": {"a": 1}, "counts": {"documents": 3}, **sides})
    old = Shards.read(folder).verified()
    assert old.index.facts == {"wrap": True, "eos_id": 7} and old.index.counts == {"documents": 3}
    assert np.array_equal(old.states(), ALL) and np.array_equal(old.validation(), PARTS[0])
    assert (old.fingerprint, old.identity) == (now.fingerprint, now.identity)
    assert ShardSource(old, 3).read(2, 9).x.equal(ShardSource(now, 3).read(2, 9).x)


def test_codes_of_format_1_still_load(tmp_path: Path) -> None:
    rows = np.array([[1, 2, 0], [3, 4, 1], [5, 6, 1]], dtype="<u2")
    shards = []
    for number, part in enumerate((rows[:2], rows[2:])):
        name = f"codes_{number:05d}.bin"
        (tmp_path / name).write_bytes(part.tobytes())
        shards.append({"name": name, "images": len(part), "blake2b": blake2b(part.tobytes()).hexdigest()})
    facts = {"num_codes": 8, "length": 2, "classes": ["a", "b"], "vqgan": "v", "made_by": {}, "skipped": 5}
    plain = {"kind": "di4c_lm.codes", "format": 1, **facts, "shards": shards}
    (tmp_path / INDEX).write_text(json.dumps(plain))
    old = Shards.read(tmp_path).verified()
    assert old.states().tolist() == rows[:, :2].tolist() and old.labels().tolist() == [0, 1, 1]
    assert (old.index.coder, old.index.classes, old.index.num_states, old.skipped) == ("v", ("a", "b"), 8, 5)
    (tmp_path / INDEX).write_text(json.dumps({**plain, "shards": [{"name": "codes_00000.bin"}]}))
    with pytest.raises(ValueError, match="make the shards again"):
        Index.read(tmp_path)


NAME = "train_00001.bin"


@pytest.fixture
def three(tmp_path: Path) -> Path:
    path = tmp_path / "shards"
    path.mkdir()
    write_shards(path, [np.arange(12).reshape(4, 3) + 50 * n for n in range(3)])
    return path


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "corrupt": flip,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_with_both_checksums(three: Path, kind: str) -> None:
    expected = Index.read(three).train[1].blake2b
    DAMAGES[kind](three / NAME)
    found = checksum(three / NAME, blake2b) if kind != "missing" else "no file"
    with pytest.raises(ValueError, match="data.skip_bad=true") as raised:
        Shards.read(three).verified("once", three.parent)
    said = str(raised.value)
    assert f"{three / NAME}: {kind}: expected 24 bytes with BLAKE2b {expected}, found " in said
    assert found in said and "1 of 4 files" in said


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_left_out_and_counted_where_asked(three: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGES[kind](three / NAME)
    assert len(Shards.read(three).verified("once", three.parent, skip_bad=True)) == 8
    messages = [record.getMessage() for record in caplog.records]
    assert NAME in messages[0] and kind in messages[0]
    assert "without 1 of 3 shards, 4 of 12 sequences" in messages[1]


def test_the_validation_cannot_be_left_out(three: Path) -> None:
    flip(three / "validation.bin")
    with pytest.raises(ValueError, match="validation.bin: corrupt"):
        Shards.read(three).verified("once", three.parent, skip_bad=True)


def test_sizes_alone_do_not_see_a_flipped_bit(three: Path) -> None:
    flip(three / NAME)
    (three / "train_00002.bin").unlink()
    assert list(Shards.read(three).damage("size", three.parent)) == [three / "train_00002.bin"]


@pytest.mark.parametrize("how, reads", [("once", [4, 0, 1, 0]), ("always", [4, 4, 4, 4]), ("size", [0, 0, 0, 0])])
def test_how_often_files_are_read(three: Path, how: How, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first opening, the second, after a change, and again."""
    shards, read = Shards.read(three), []

    def counted(path: Path, new: Any) -> str:
        read.append(path)
        return checksum(path, new)

    monkeypatch.setattr("di4c_lm.data.records.shards.checksum", counted)
    found = []
    for number in range(4):
        if number == 2:
            flip(three / NAME)
            os.utime(three / NAME, ns=(1, 1))
        read.clear()
        damage = shards.damage(how, three.parent / "cache")
        found.append(len(read))
        assert list(damage) == ([three / NAME] if number >= 2 and how != "size" else [])
    assert found == reads


def test_a_damaged_memory_is_read_anew(three: Path) -> None:
    shards = Shards.read(three)
    assert not shards.damage("once", three.parent)
    (memory,) = (three.parent / "verified_shards").iterdir()
    memory.write_text("{")
    assert not shards.damage("once", three.parent)


@pytest.mark.parametrize("states, dtype", [(2, np.uint16), (65_536, np.uint16), (65_537, np.uint32)])
def test_states_fit_their_type(states: int, dtype: type) -> None:
    assert np.dtype(row_dtype(states)) == dtype
    assert np.iinfo(dtype).max >= states - 1
