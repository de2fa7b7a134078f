"""Damaged shards: each kind is named with what was expected and found; or left out and counted."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from di4c_lm.data.records import verification
from di4c_lm.data.records.shards import Index, file_checksum
from di4c_lm.data.records.verification import How, find_damage, usable_shards
from tests.data.records.shard_folders import write_shards

NAME = "train_00001.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
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
def test_damage_is_named_with_both_checksums(folder: Path, kind: str) -> None:
    index = Index.read(folder)
    expected = index.train[1].blake2b
    DAMAGES[kind](folder / NAME)
    found = file_checksum(folder / NAME) if kind != "missing" else "no file"
    with pytest.raises(ValueError, match="data.skip_bad=true") as raised:
        usable_shards(folder, index, "once", folder.parent, skip_bad=False)
    said = str(raised.value)
    assert f"{folder / NAME}: {kind}: expected 24 bytes with BLAKE2b {expected}, found " in said
    assert found in said and "1 of 4 files" in said


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_left_out_and_counted_where_asked(folder: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    DAMAGES[kind](folder / NAME)
    assert usable_shards(folder, Index.read(folder), "once", folder.parent, skip_bad=True) == [NAME]
    messages = [record.getMessage() for record in caplog.records]
    assert NAME in messages[0] and kind in messages[0]
    assert "without 1 of 3 shards, 4 of 12 sequences" in messages[1]


def test_the_validation_cannot_be_left_out(folder: Path) -> None:
    flip(folder / "validation.bin")
    with pytest.raises(ValueError, match="validation.bin: corrupt"):
        usable_shards(folder, Index.read(folder), "once", folder.parent, skip_bad=True)


def test_sizes_alone_do_not_see_a_flipped_bit(folder: Path) -> None:
    flip(folder / NAME)
    (folder / "train_00002.bin").unlink()
    assert list(find_damage(folder, Index.read(folder), "size", folder.parent)) == ["train_00002.bin"]


@pytest.mark.parametrize("how, reads", [("once", [4, 0, 1, 0]), ("always", [4, 4, 4, 4]), ("size", [0, 0, 0, 0])])
def test_how_often_files_are_read(folder: Path, how: How, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first opening, the second, after a change, and again."""
    index, read = Index.read(folder), []

    def counted(path: Path) -> str:
        read.append(path)
        return file_checksum(path)

    monkeypatch.setattr(verification, "file_checksum", counted)
    found = []
    for number in range(4):
        if number == 2:
            flip(folder / NAME)
            os.utime(folder / NAME, ns=(1, 1))
        read.clear()
        damage = find_damage(folder, index, how, folder.parent / "cache")
        found.append(len(read))
        assert list(damage) == ([NAME] if number >= 2 and how != "size" else [])
    assert found == reads


def test_a_damaged_memory_is_read_anew(folder: Path) -> None:
    index = Index.read(folder)
    assert not find_damage(folder, index, "once", folder.parent)
    (memory,) = (folder.parent / "verified_shards").iterdir()
    memory.write_text("{")
    assert not find_damage(folder, index, "once", folder.parent)
