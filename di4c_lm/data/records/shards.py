"""Rows of states that were prepared once, tokens or an image's codes: memory-mapped files under one index. `writer` writes them.

    index.json            an `Index`: the shards with rows, bytes and checksum, what they were made from and by what
    train_00000.bin ...   (n, D) little-endian states, uint16, or uint32 for more than 65,536; where there are classes, (n, D + 1) with
                          the class of each row behind it
    validation.bin        the same, of what was held out, if anything was
    features_00000.bin    of the features of a teacher (kind "features"), one file beside each shard: see `features`

A folder may instead hold the folders part_1_of_4, ..., part_4_of_4, each of this form and all made alike.

(The on-disk format of `datasets` reads as fast, but has no checksums to tell which shard is damaged, nothing to do without one, and
cannot resume where a kill cut its writing.)
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Int, Int64, Integer

from di4c_lm.core.files import checksum, read_json, write_json
from di4c_lm.core.terminal import progress_bar
from di4c_lm.data.batches import Batch, LikeWidths, cut, in_epochs, make_batch, scattered

logger = logging.getLogger(__name__)

INDEX, FORMAT = "index.json", 2
FILLING = "filling"  # among the facts of tokens: how records fill rows, where a row is not one record and EOS behind it
Kind = Literal["tokens", "codes", "features"]
How = Literal["once", "always", "size"]
Stamp = tuple[int, int]  # bytes, nanoseconds of the last change
TOOLS = {
    "tokens": "`di4c prepare shards`",
    "codes": "`di4c prepare codes`",
    "features": "`di4c prepare features`",
}
_PART = re.compile(r"part_(\d+)_of_(\d+)")
blake2b = functools.partial(hashlib.blake2b, digest_size=16)


def row_dtype(num_states: int) -> str:
    """Little-endian uint16, or uint32 for more than 65,536 states."""
    return "<u2" if num_states <= 1 << 16 else "<u4"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of whole rows."""

    name: str
    rows: int
    size: int  # bytes
    blake2b: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Index:
    """What a folder of shards says about itself. The files follow each other: `sample_id` counts rows through `train`."""

    kind: Kind
    length: int  # D
    num_states: int  # S, of tokens MASK included
    dtype: str
    coder: str  # fingerprint of the tokenizer, or of what encoded the images
    classes: tuple[str, ...] = ()  # whose number stands behind each row; none: no label
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)  # of tokens: wrap, eos_id
    made_by: dict[str, Any]  # source and options, as the writer was given them
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # what was read, mended and left out on the way
    train: tuple[Shard, ...] = ()
    validation: Shard | None = None
    tail: int = 0  # numbers a row behind states and label
    beside: tuple[Shard, ...] = ()  # where there are any, one beside each of `train`

    @property
    def width(self) -> int:
        """Numbers a row."""
        behind = self.length if self.has_parts else bool(self.classes) or self.has_prompts
        return self.length + behind + self.tail

    @property
    def has_parts(self) -> bool:
        """Whether behind each row of tokens stands, for each of them, which record it is of; see `Batch.parts`."""
        return FILLING in self.facts

    def batch(
        self, cells_BW: Integer[np.ndarray, "B W"], sample_id: Int[np.ndarray, " B"], epoch: Int[np.ndarray, " B"]
    ) -> Batch:
        """Rows as a batch, with their labels or what is given of them where they have some."""
        length = self.length
        batch = make_batch(cells_BW[:, :length], sample_id, epoch)
        if not (self.has_parts or self.classes or self.has_prompts):
            return batch
        behind_BK = torch.from_numpy(cells_BW[:, length : self.width - self.tail].astype(np.int64))
        if self.has_parts:
            return dataclasses.replace(batch, parts=behind_BK)
        return dataclasses.replace(batch, **{"given" if self.has_prompts else "labels": behind_BK[:, 0]})

    @property
    def has_prompts(self) -> bool:
        """Whether behind each row of tokens stands how many of them are given."""
        return self.facts.get("records", "text") != "text"

    @property
    def rows(self) -> int:
        """Of the training side."""
        return sum(shard.rows for shard in self.train)

    @property
    def files(self) -> tuple[Shard, ...]:
        """Of both sides, and what stands beside them."""
        return (*self.train, *(() if self.validation is None else (self.validation,)), *self.beside)

    def write(self, folder: Path) -> None:
        """Write `index.json`, under a checksum of its own."""
        plain = {"format": FORMAT, **dataclasses.asdict(self)}
        write_json(folder / INDEX, {**plain, "checksum": _seal(plain)})

    @classmethod
    def read(cls, folder: Path) -> "Index":
        """The index of `folder`. Raises `ValueError` where there is none, or it is damaged or of an unknown format."""
        path = folder / INDEX
        if not path.is_file():
            raise ValueError(f"{folder}: no {INDEX}: expected a folder that {' or '.join(TOOLS.values())} has finished")
        plain = read_json(path)
        expected, found = plain.pop("checksum", None), _seal(plain)
        try:
            if plain.get("kind") == "di4c_lm.codes" and plain["format"] == 1:  # the one kind without a checksum
                return cls(**_from_codes_1(plain))
            if found != expected:
                raise ValueError(f"{path}: damaged: expected checksum {expected}, found {found}")
            if plain["format"] == 1:
                return cls(**_from_tokens_1(plain))
            if plain.pop("format") != FORMAT:
                raise KeyError("format")
            plain |= {side: tuple(Shard(**shard) for shard in plain.get(side, ())) for side in ("train", "beside")}
            plain["validation"] = plain["validation"] and Shard(**plain["validation"])
            return cls(**{**plain, "classes": tuple(plain["classes"])})
        except (KeyError, TypeError, AttributeError) as error:
            tool = TOOLS.get(str(plain.get("kind")), " or ".join(TOOLS.values()))
            raise ValueError(
                f"{path}: not of format {FORMAT} or 1 ({type(error).__name__}: {error}): make the shards again with {tool}"
            ) from error


def _seal(plain: dict[str, Any]) -> str:
    return blake2b(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _from_tokens_1(plain: dict[str, Any]) -> dict[str, Any]:
    """The fields of an index of tokens of format 1."""
    shards = [
        Shard(name=one["name"], rows=one["sequences"], size=one["size"], blake2b=one["blake2b"])
        for one in (*plain["train"], plain["validation"])
    ]
    kept = {name: plain[name] for name in ("length", "num_states", "dtype", "made_by", "counts")}
    facts = {"wrap": plain["wrap"], "eos_id": plain["eos_id"]}
    more = {"coder": plain["tokenizer"], "facts": facts, "train": tuple(shards[:-1]), "validation": shards[-1]}
    return {"kind": "tokens", **kept, **more}


def _from_codes_1(plain: dict[str, Any]) -> dict[str, Any]:
    """The fields of an index of codes of format 1."""
    row_bytes = 2 * (plain["length"] + 1)
    shards = (
        Shard(name=one["name"], rows=one["images"], size=one["images"] * row_bytes, blake2b=one["blake2b"])
        for one in plain["shards"]
    )
    kept = {"length": plain["length"], "num_states": plain["num_codes"], "coder": plain["vqgan"]}
    more = {"classes": tuple(plain["classes"]), "made_by": plain["made_by"], "counts": {"skipped": plain["skipped"]}}
    return {"kind": "codes", "dtype": "<u2", **kept, **more, "train": tuple(shards)}


def is_shards(path: Path) -> bool:
    """Whether `path` is a folder with an index, or of parts."""
    return (path / INDEX).is_file() or (path.is_dir() and any(_PART.fullmatch(p.name) for p in path.iterdir()))


@final
class Shards:
    """The rows of a folder of shards, mapped and not read; without the files of `left_out`.

    Args:
        folder: their name in messages.
        parts: the folders with their indices, in order; all made alike.
        left_out: paths of files.
    """

    def __init__(self, folder: Path, parts: Sequence[tuple[Path, Index]], left_out: Collection[Path] = ()) -> None:
        self.folder, self.index, self._parts = folder, parts[0][1], list(parts)
        train = [(part / shard.name, shard) for part, index in parts for shard in index.train]
        beside = [(part / shard.name, shard) for part, index in parts for shard in index.beside]
        starts = np.cumsum([0, *(shard.rows for _, shard in train)])
        files = [{path for path, _ in pair} for pair in zip(train, beside or train, strict=True)]
        kept = [n for n, (_, shard) in enumerate(train) if shard.rows and not files[n] & {*left_out}]
        self._train, self._beside = [train[n] for n in kept], [beside[n] for n in kept if beside]
        self._first_id = np.array([starts[n] for n in kept], dtype=np.int64)
        self._ends = np.cumsum([shard.rows for _, shard in self._train])
        self._begins = self._ends - np.array([shard.rows for _, shard in self._train], dtype=np.int64)
        if not len(self):
            raise ValueError(f"{folder}: no shard is left with a row in it")

    @classmethod
    def read(cls, folder: Path) -> "Shards":
        """Those of a folder, or of all its parts, by their indices; `verified` compares the files.

        Raises `ValueError` as `Index.read` does, for a part that is missing or made otherwise than the first, and for no row at all.
        """
        parts = [(part, Index.read(part)) for part in _parts(folder)]
        first = parts[0][1]
        for part, index in parts:
            for what in ("kind", "length", "num_states", "dtype", "coder", "classes", "facts", "tail"):
                if getattr(index, what) != getattr(first, what):
                    raise ValueError(f"{part / INDEX}: {what} differs from that of {parts[0][0] / INDEX}")
        return cls(folder, parts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def skipped(self) -> int:
        """What could not be read when the shards were made."""
        return sum(index.counts.get("skipped", 0) for _, index in self._parts)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the contents: changes with the coder and with any state."""
        checksums = [shard.blake2b for _, index in self._parts for shard in index.files]
        return hashlib.sha256(
            json.dumps([self.index.length, self.index.dtype, self.index.coder, *checksums]).encode()
        ).hexdigest()

    @functools.cached_property
    def _contents(self) -> str:
        return hashlib.sha256("".join(shard.blake2b for _, shard in self._train).encode()).hexdigest()[:12]

    @property
    def identity(self) -> str:
        """Of the shards in use: a run resumes only where these are the same."""
        return f"{len(self)} sequences in {len(self._train)} shards ({self._contents})"

    def __getitem__(self, rows: Int[np.ndarray, " B"]) -> Integer[np.ndarray, "B W"]:
        """Some of the rows in use, in that order."""
        number_B = np.searchsorted(self._ends, rows, side="right")
        found = np.empty((len(rows), self.index.width), dtype=np.dtype(self.index.dtype))
        for number in np.unique(number_B):
            here_B = number_B == number
            found[here_B] = self.blocks[number][rows[here_B] - self._begins[number]]
        return found

    def number_of(self, row: int) -> int:
        """Which of the shards in use holds a row."""
        return int(np.searchsorted(self._ends, row, side="right"))

    def ids(self, rows: Int[np.ndarray, " B"]) -> Int64[np.ndarray, " B"]:
        """The number of each of these rows among all that were written, those left out counted."""
        number_B = np.searchsorted(self._ends, rows, side="right")
        return (self._first_id - self._begins)[number_B] + rows

    def _mapped(self, path: Path, shard: Shard) -> Integer[np.ndarray, "n W"]:
        return np.memmap(path, np.dtype(self.index.dtype), "r", shape=(shard.rows, self.index.width))

    @functools.cached_property
    def blocks(self) -> list[Integer[np.ndarray, "n W"]]:
        """The rows in use shard by shard, mapped."""
        return [self._mapped(path, shard) for path, shard in self._train]

    @property
    def beside(self) -> list[tuple[Path, Shard]]:
        """The files beside the shards in use."""
        return self._beside

    def states(self) -> Int64[np.ndarray, "N D"]:
        """All rows in use without their labels, in memory."""
        return np.concatenate([block_nW[:, : self.index.length] for block_nW in self.blocks]).astype(np.int64)

    def labels(self) -> Int64[np.ndarray, " N"]:
        """All labels of the rows in use, in memory. There are some where the index has classes."""
        assert self.index.classes
        return np.concatenate([block_nW[:, -1] for block_nW in self.blocks]).astype(np.int64)

    def validation(self) -> Integer[np.ndarray, "N D"]:
        """The rows that were held out, mapped; of parts, in memory."""
        found = [
            self._mapped(part / one.validation.name, one.validation) for part, one in self._parts if one.validation
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)

    # Verification. Sizes are looked at on every opening, one `stat` a shard. Reading all the files for every rank and every start could
    # take hours. So a checksum that was read once is remembered with the file's size and time of change, and holds as long as these do.

    def damage(self, how: How = "always", cache_dir: Path | None = None) -> dict[Path, str]:
        """What is wrong with which of the files, of both sides: a message by path, none where all is well.

        `how`: "size" reads no checksum, "once" those that no earlier call has read (remembered in `cache_dir`), "always" all; on all cores.
        """
        shards = {part / shard.name: shard for part, index in self._parts for shard in index.files}
        stamps = {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in shards if path.exists()}
        name = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
        memory = None if cache_dir is None else cache_dir / "verified_shards" / f"{name}.json"
        known = {} if memory is None else _remembered(memory)  # size, time of change and checksum by path
        keys = {path: str(path.relative_to(self.folder)) for path in shards}
        wanted = [path for path, stamp in stamps.items() if stamp[0] == shards[path].size and how != "size"]
        unread = [path for path in wanted if how == "always" or tuple(known.get(keys[path], ())[:2]) != stamps[path]]
        if unread:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                read = pool.map(functools.partial(checksum, new=blake2b), unread)
                found = list(progress_bar(read, desc="checksums", total=len(unread), unit=" shards", delay=2))
            known |= {keys[path]: [*stamps[path], digest] for path, digest in zip(unread, found, strict=True)}
            if memory is not None:
                write_json(memory, known)
        digests = {path: known[keys[path]][2] for path in wanted}
        problems = {path: _problem(path, one, stamps.get(path), digests.get(path)) for path, one in shards.items()}
        return {path: problem for path, problem in problems.items() if problem is not None}

    def verified(self, how: How = "always", cache_dir: Path | None = None, *, skip_bad: bool = False) -> "Shards":
        """The same, its files compared with their checksums; with `skip_bad` without the damaged training shards, counted in the log.

        Raises `ValueError` that names each damaged file with the checksum expected and found, unless `skip_bad` and the validation is
        whole; and where no shard is left.
        """
        damage = self.damage(how, cache_dir)
        if not damage:
            return self
        train = {path for path, _ in (*self._train, *self._beside)}
        total = sum(len(index.files) for _, index in self._parts)
        if not skip_bad or not damage.keys() <= train:
            raise ValueError(
                "\n".join(damage.values())
                + f"\n{len(damage)} of {total} files cannot be used: put them back, make them again in an empty folder with "
                f"{TOOLS[self.index.kind]}, or leave the training shards among them out by data.skip_bad=true"
            )
        for problem in damage.values():
            logger.warning("left out: %s", problem)
        left = Shards(self.folder, self._parts, set(damage))
        shown = (self.folder, len(self._train) - len(left._train), len(self._train), len(self) - len(left), len(self))
        logger.warning("%s: reading without %d of %d shards, %d of %d sequences", *shown)
        return left


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


def _remembered(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except ValueError as error:
        logger.warning("%s: it is forgotten, and the shards are read again", error)
        return {}


def _problem(path: Path, shard: Shard, stamp: Stamp | None, found: str | None) -> str | None:
    expected = f"expected {shard.size} bytes with BLAKE2b {shard.blake2b}"
    if stamp is None:
        return f"{path}: missing: {expected}, found no file"
    if stamp[0] != shard.size:
        kind = "empty" if stamp[0] == 0 else "truncated" if stamp[0] < shard.size else "too long"
        return f"{path}: {kind}: {expected}, found {stamp[0]} bytes with BLAKE2b {checksum(path, new=blake2b)}"
    if found is not None and found != shard.blake2b:
        return f"{path}: corrupt: {expected}, found {stamp[0]} bytes with BLAKE2b {found}"
    return None


@final
class ShardSource:
    """The rows of shards for a `BatchStream`: any position is read at once, and nothing is kept of an epoch's order.

    `sample_id` is the row's number among all that were written, so that it does not depend on the shards left out.
    """

    def __init__(self, shards: Shards, seed: int) -> None:
        self.shards, self.seed = shards, seed

    @functools.cached_property
    def _like_widths(self) -> LikeWidths:
        """Of rows with buckets."""
        length, size = self.shards.index.length, len(self)

        def widths_of(row_N: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
            return (self.shards[row_N][:, length : 2 * length] > 0).sum(1)

        return LikeWidths(lambda epoch, place: scattered(place, size, self.seed, epoch), widths_of, size, self.seed)

    def rows_at(self, epoch: int, place_B: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """The rows at places of an epoch: in random order, where there are buckets those of like width together."""
        if self.shards.index.facts.get(FILLING, {}).get("buckets"):
            return self._like_widths(epoch, place_B)
        return scattered(place_B, len(self), self.seed, epoch)

    def ordered(self, seed: int) -> "ShardSource":
        """The same in the order of another seed."""
        return ShardSource(self.shards, seed)

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def identity(self) -> str:
        """See `Shards.identity`."""
        return self.shards.identity

    def read(self, start: int, count: int) -> Batch:
        """`count` rows from position `start` on, with their labels where they have some."""
        row_B, epoch_B = in_epochs(start, count, len(self), self.rows_at)
        return cut(self.shards.index.batch(self.shards[row_B], self.shards.ids(row_B), epoch_B))
