"""Images as codes, made once: rows of codes and a class in memory-mapped files under one index. `code_writer` writes them.

    index.json           a `CodeIndex`: the shards with images and checksum, what they were made from and by which VQGAN
    codes_00000.bin ...  (n, D + 1) little-endian uint16: the D codes of an image row by row, then its class

A folder may instead hold the folders part_1_of_4, ..., part_4_of_4, each of this form and all of one VQGAN.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int, Int64, UInt16

from di4c_lm.data.batches import Batch, scattered
from di4c_lm.data.images.images import check_labels
from di4c_lm.data.records.shards import file_checksum, replace_file

INDEX, FORMAT = "index.json", 1
_KIND = "di4c_lm.codes"
_PART = re.compile(r"part_(\d+)_of_(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeShard:
    """A file of whole rows."""

    name: str
    images: int
    blake2b: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeIndex:
    """What a folder of codes says about itself."""

    num_codes: int  # K
    length: int  # D
    classes: tuple[str, ...]
    vqgan: str  # fingerprint of the weights
    made_by: dict[str, Any]  # source and options, as the writer was asked
    skipped: int
    shards: tuple[CodeShard, ...]

    @property
    def images(self) -> int:
        """N."""
        return sum(shard.images for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write `index.json`, whole or not at all."""
        plain = {"kind": _KIND, "format": FORMAT, **dataclasses.asdict(self)}
        replace_file(folder / INDEX, (json.dumps(plain, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "CodeIndex":
        """The index of `folder`. Raises `ValueError` where there is none, or it is damaged or of another format."""
        path = folder / INDEX
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if (plain.pop("kind"), plain.pop("format")) != (_KIND, FORMAT):
                raise ValueError("another kind of file")
            shards = tuple(CodeShard(**shard) for shard in plain.pop("shards"))
            return cls(**{**plain, "classes": tuple(plain["classes"]), "shards": shards})
        except FileNotFoundError:
            raise ValueError(f"{path}: expected the index of a folder of codes, found nothing") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected the index of a folder of codes, format {FORMAT}: {error}") from error


@final
class CodeSet:
    """Images as codes with their classes, mapped and not read. `fingerprint` changes with any of them."""

    def __init__(self, folder: Path, indices: Sequence[tuple[Path, CodeIndex]]) -> None:
        first = indices[0][1]
        self.name, self.num_codes, self.length = str(folder), first.num_codes, first.length
        self.classes, self.vqgan = first.classes, first.vqgan
        self.skipped = sum(index.skipped for _, index in indices)
        shards = [(part, shard) for part, index in indices for shard in index.shards]
        self.fingerprint = hashlib.sha256("".join(shard.blake2b for _, shard in shards).encode()).hexdigest()
        self._maps = [
            np.memmap(part / shard.name, np.dtype("<u2"), "r", shape=(shard.images, self.length + 1))
            for part, shard in shards
        ]
        self._ends = np.cumsum([shard.images for _, shard in shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: Int[np.ndarray, " B"]) -> UInt16[np.ndarray, "B cells"]:
        """Codes and class of some images, in that order."""
        shard_B = np.searchsorted(self._ends, rows, side="right")
        found = np.empty((len(rows), self.length + 1), dtype=np.uint16)
        for shard in np.unique(shard_B):
            here_B = shard_B == shard
            start = self._ends[shard] - len(self._maps[shard])
            found[here_B] = self._maps[shard][rows[here_B] - start]
        return found

    def codes(self) -> Int64[np.ndarray, "N D"]:
        """All codes, in memory."""
        return self[np.arange(len(self))][:, :-1].astype(np.int64)

    def labels(self) -> Int64[np.ndarray, " N"]:
        """All classes, in memory."""
        return self[np.arange(len(self))][:, -1].astype(np.int64)


def load_codes(folder: Path) -> CodeSet:
    """The codes in `folder`, or in all the parts it holds, each file's checksum compared.

    Raises `ValueError` with the file's name for one that is missing, damaged or of another size, for parts that are missing or of another
    VQGAN, for codes or classes out of range, and for none at all.
    """
    indices = [(part, CodeIndex.read(part)) for part in _parts(folder)]
    first = indices[0][1]
    for part, index in indices:
        for what in ("num_codes", "length", "classes", "vqgan"):
            if getattr(index, what) != getattr(first, what):
                raise ValueError(f"{part / INDEX}: {what} differs from that of {indices[0][0] / INDEX}")
        for shard in index.shards:
            _check_shard(part / shard.name, index, shard)
    if not any(index.images for _, index in indices):
        raise ValueError(f"{folder}: expected codes of at least one image, found none")
    found = CodeSet(folder, [(part, index) for part, index in indices if index.images])
    codes = int(max(block[:, :-1].max() for block in found._maps))
    if codes >= found.num_codes:
        raise ValueError(f"{folder}: expected codes below {found.num_codes}, found {codes}")
    check_labels(found.labels(), len(found.classes), str(folder))
    return found


def is_code_folder(path: Path) -> bool:
    """Whether `path` holds an index of codes, or parts."""
    return (path / INDEX).is_file() or (path.is_dir() and any(_PART.fullmatch(p.name) for p in path.iterdir()))


def _parts(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file() or not folder.is_dir():
        return [folder]
    found = {int(match[1]): (path, int(match[2])) for path in folder.iterdir() if (match := _PART.fullmatch(path.name))}
    if not found:
        return [folder]
    count = next(iter(found.values()))[1]
    missing = [n for n in range(1, count + 1) if n not in found or found[n][1] != count]
    if missing:
        raise ValueError(f"{folder}: expected the parts 1 to {count}, found no part {missing[0]} of {count}")
    return [found[n][0] for n in range(1, count + 1)]


def _check_shard(path: Path, index: CodeIndex, shard: CodeShard) -> None:
    size = shard.images * (index.length + 1) * 2
    if not path.is_file() or path.stat().st_size != size:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
        raise ValueError(f"{path}: expected {size} bytes, found {found}")
    if (found := file_checksum(path)) != shard.blake2b:
        raise ValueError(f"{path}: damaged: expected the checksum {shard.blake2b}, found {found}")


@final
class CodeSource:
    """Codes and classes for a `BatchStream`, each epoch in an order of its own. `sample_id` is the image's number in `codes`."""

    def __init__(self, codes: CodeSet, seed: int) -> None:
        self._codes = codes
        self._seed = seed

    def __len__(self) -> int:
        return len(self._codes)

    @property
    def identity(self) -> str:
        """Of the codes: a run goes on only where these are the same."""
        return f"{len(self)} images as codes ({self._codes.fingerprint[:12]})"

    def read(self, start: int, count: int) -> Batch:
        """`count` images from position `start` on."""
        epoch_B, index_B = np.divmod(np.arange(start, start + count), len(self))
        row_B = np.empty_like(index_B)
        for epoch in np.unique(epoch_B):
            here_B = epoch_B == epoch
            row_B[here_B] = scattered(index_B[here_B], len(self), self._seed, int(epoch))
        cells_BC = self._codes[row_B].astype(np.int64)
        x_BD, labels_B = np.ascontiguousarray(cells_BC[:, :-1]), np.ascontiguousarray(cells_BC[:, -1])
        return Batch(*map(torch.from_numpy, (x_BD, row_B, epoch_B, labels_B)))
