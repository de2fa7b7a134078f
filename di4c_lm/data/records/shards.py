"""Prepared shards: packed sequences in memory-mapped files under one index. `shard_writer` writes them.

    index.json            an `Index`: the shards with sequences, bytes and checksum, what they were made from and by what
    train_00000.bin ...   (n, D) token ids, little-endian uint16, or uint32 for more than 65,536 states
    validation.bin        the same, of documents held out
    validation.jsonl      these documents
    tokenizer/            as `save_pretrained` writes it

(The on-disk format of `datasets` reads as fast, but has no checksums to tell which shard is damaged, nothing to go on without one, and
cannot go on where a kill cut its writing.)
"""

import bisect
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int, Integer

from di4c_lm.data.batches import Batch, make_batch, scattered

INDEX, TOKENIZER = "index.json", "tokenizer"
VALIDATION, VALIDATION_TEXTS = "validation.bin", "validation.jsonl"
FORMAT = 1
_READ_AT_ONCE = 1 << 22


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of whole sequences."""

    name: str
    sequences: int
    size: int  # bytes
    blake2b: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """What a folder of shards says about itself. The files follow each other: `sample_id` counts sequences through `train`."""

    format: int
    length: int  # D
    wrap: bool
    dtype: str
    num_states: int  # S, MASK included
    eos_id: int
    tokenizer: str  # fingerprint
    made_by: dict[str, Any]  # source, layout and tokenizer, as the writer was asked
    counts: dict[str, int]  # documents, held_out, split, replaced, skipped, text_bytes, tokens, dropped_tokens
    train: tuple[Shard, ...]
    validation: Shard

    @property
    def sequences(self) -> int:
        """Of the training side."""
        return sum(shard.sequences for shard in self.train)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contents: changes with the tokenizer and with any token."""
        parts = [self.length, self.dtype, self.tokenizer, *(shard.blake2b for shard in (*self.train, self.validation))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `index.json`, under a checksum of its own."""
        plain = dataclasses.asdict(self)
        content = {**plain, "checksum": _checksum(plain)}
        replace_file(folder / INDEX, (json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """The index of `folder`. Raises `ValueError` where there is none, or it is damaged or of another format."""
        path = folder / INDEX
        if not path.is_file():
            raise ValueError(
                f"data.path={folder}: no {INDEX} is there: allowed is a folder that tools/prepare_shards.py has finished"
            )
        try:
            plain = json.loads(path.read_bytes())
            expected = plain.pop("checksum")
            found = _checksum(plain)
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: damaged: {type(error).__name__}: {error}") from error
        if plain.get("format") != FORMAT:
            raise ValueError(f"{path}: format {plain.get('format')!r}, allowed is {FORMAT}: prepare the shards again")
        if found != expected:
            raise ValueError(f"{path}: damaged: expected checksum {expected}, found {found}")
        train = tuple(Shard(**shard) for shard in plain.pop("train"))
        return cls(**{**plain, "train": train, "validation": Shard(**plain["validation"])})


def _checksum(plain: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()


def file_checksum(path: Path) -> str:
    """BLAKE2b (16 bytes, hex) of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_READ_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write beside, sync and rename: a kill or a full disk leaves the old content or the new."""
    new = path.with_name(f"{path.name}.tmp")
    with open(new, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def read_held_out(folder: Path) -> list[str]:
    """The held-out documents that are kept."""
    with open(folder / VALIDATION_TEXTS, "rb") as lines:
        return [json.loads(line)["text"] for line in lines]


def map_shard(folder: Path, index: Index, shard: Shard) -> Integer[np.ndarray, "n D"]:
    """The sequences of a shard, mapped and not read."""
    return np.memmap(folder / shard.name, np.dtype(index.dtype), "r", shape=(shard.sequences, index.length))


@final
class ShardSource:
    """The training sequences of a folder of shards: any position is read at once, and nothing is kept of an epoch's order.

    `left_out` names shards to go on without. `sample_id` is the sequence's number in the whole index.
    """

    def __init__(self, folder: Path, index: Index, seed: int, left_out: Sequence[str] = ()) -> None:
        starts = [0, *accumulate(shard.sequences for shard in index.train)]
        kept = [n for n, shard in enumerate(index.train) if shard.name not in left_out]
        self.folder, self.index, self.seed = folder, index, seed
        self._shards = [index.train[n] for n in kept]
        self._first_id = np.array([starts[n] for n in kept], dtype=np.int64)
        self._ends = list(accumulate(shard.sequences for shard in self._shards))
        self._maps: dict[int, Integer[np.ndarray, "n D"]] = {}
        if not len(self):
            raise ValueError(f"{folder}: no shard is left with a training sequence in it")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def identity(self) -> str:
        """Of the shards in use: a run goes on only where these are the same."""
        content = "".join(shard.blake2b for shard in self._shards)
        return (
            f"{len(self)} sequences in {len(self._shards)} shards ({hashlib.sha256(content.encode()).hexdigest()[:12]})"
        )

    def _sequence(self, row: int) -> tuple[int, Integer[np.ndarray, " D"]]:
        number = bisect.bisect_right(self._ends, row)
        inside = row - (self._ends[number - 1] if number else 0)
        if number not in self._maps:
            self._maps[number] = map_shard(self.folder, self.index, self._shards[number])
        return int(self._first_id[number]) + inside, self._maps[number][inside]

    def rows(self, start: int, count: int) -> Int[np.ndarray, " B"]:
        """Which of the rows in use lie at `count` positions from `start` on."""
        epoch_B, index_B = np.divmod(np.arange(start, start + count), len(self))
        row_B = np.empty_like(index_B)
        for epoch in np.unique(epoch_B):
            here_B = epoch_B == epoch
            row_B[here_B] = scattered(index_B[here_B], len(self), self.seed, int(epoch))
        return row_B

    def read(self, start: int, count: int) -> Batch:
        """`count` sequences from position `start` on."""
        sample_ids, rows = zip(*(self._sequence(row) for row in self.rows(start, count).tolist()), strict=True)
        epoch_B = np.arange(start, start + count) // len(self)
        return make_batch(np.stack(rows), np.array(sample_ids), epoch_B)
