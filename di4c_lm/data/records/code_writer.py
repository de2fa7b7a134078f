"""Writes the folders that `codes` reads: one pass over the images, cut at any moment without loss.

After each shard `state.json` is replaced by one rename; a run that was cut goes on behind the last whole shard, and what it had written
past that is made again. `index.json` comes last and makes the folder usable.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from di4c_lm.data.images.image_files import Fit, ImageReader, ImageRecord, Line, RawImages
from di4c_lm.data.images.images import check_labels
from di4c_lm.data.records.codes import INDEX, CodeIndex, CodeShard
from di4c_lm.data.records.shards import replace_file

STATE = "state.json"
Encode = Callable[[UInt8[np.ndarray, "B H W C"]], Int64[np.ndarray, "B D"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeJob:
    """What is to be encoded and how. `part` p of `parts` takes every `parts`-th image; `mirror` adds each image turned left to right."""

    raw: RawImages
    fit: Fit
    num_codes: int
    length: int
    vqgan: str
    skip_bad: bool = False
    mirror: bool = False
    part: int = 1
    parts: int = 1
    shard_images: int = 10_000
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("num_codes", "length", "parts", "shard_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is impossible: allowed is a value of at least 1")
        if not 1 <= self.part <= self.parts:
            raise ValueError(f"part={self.part} is impossible: allowed is 1 to parts={self.parts}")
        if self.num_codes > 2**16 or len(self.raw.classes) > 2**16:
            raise ValueError(f"{self.num_codes} codes, {len(self.raw.classes)} classes: allowed are at most 65,536")
        if not self.raw.classes:
            raise ValueError(f"{self.raw.name}: expected classes, found none; name them")

    @property
    def asked(self) -> dict[str, Any]:
        """What a resumed run must agree with, JSON-ready."""
        kept = ("num_codes", "length", "vqgan", "skip_bad", "mirror", "part", "parts", "shard_images")
        size = None if self.fit.size is None else list(self.fit.size)
        fit = {"size": size, "channels": self.fit.channels, "crop": self.fit.crop}
        told = {"source": self.raw.name, "classes": list(self.raw.classes), "fit": fit}
        return {**told, **{name: getattr(self, name) for name in kept}}


@dataclasses.dataclass(kw_only=True)
class _State:
    """`taken`: raw images that this part has behind it, skipped ones among them."""

    asked: dict[str, Any]
    taken: int = 0
    skipped: int = 0
    shards: list[CodeShard] = dataclasses.field(default_factory=list)

    def write(self, folder: Path) -> None:
        replace_file(folder / STATE, json.dumps(dataclasses.asdict(self)).encode())


def write_codes(
    folder: Path, job: CodeJob, encode: Encode, *, on_shard: Callable[[int, int], None] | None = None
) -> CodeIndex:
    """Encode what is not encoded yet, and write the index. A finished folder of the same job is left as it is.

    `on_shard` sees images encoded and images skipped so far. Raises `ValueError` where `folder` holds another job, and as `ImageReader`
    and the VQGAN do; the shards written until then stay, and a next call goes on behind them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _resumed(folder, job)
    if (folder / INDEX).is_file():
        return CodeIndex.read(folder)
    for records, taken, skipped in _blocks(job, state.taken):
        if records:
            name = f"codes_{len(state.shards):05d}.bin"
            content = _encoded(records, job, encode).astype("<u2").tobytes()
            replace_file(folder / name, content)
            checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
            state.shards.append(CodeShard(name=name, images=len(records) * (1 + job.mirror), blake2b=checksum))
        state.taken += taken
        state.skipped += skipped
        state.write(folder)
        if on_shard is not None:
            on_shard(sum(shard.images for shard in state.shards), state.skipped)
    index = CodeIndex(
        num_codes=job.num_codes,
        length=job.length,
        classes=job.raw.classes,
        vqgan=job.vqgan,
        made_by=job.asked,
        skipped=state.skipped,
        shards=tuple(state.shards),
    )
    index.write(folder)
    (folder / STATE).unlink(missing_ok=True)
    return index


def save_codes(
    folder: Path,
    codes: Int64[np.ndarray, "N D"],
    labels: Int64[np.ndarray, " N"],
    *,
    num_codes: int,
    classes: tuple[str, ...],
    vqgan: str,
    made_by: dict[str, Any],
) -> None:
    """Write codes that are all in memory, as one shard. Raises `ValueError` for labels that name no class."""
    check_labels(labels, len(classes), str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    content = np.concatenate([codes, labels[:, None]], 1).astype("<u2").tobytes()
    checksum = hashlib.blake2b(content, digest_size=16).hexdigest()
    shard = CodeShard(name="codes_00000.bin", images=len(codes), blake2b=checksum)
    replace_file(folder / shard.name, content)
    CodeIndex(
        num_codes=num_codes,
        length=codes.shape[1],
        classes=classes,
        vqgan=vqgan,
        made_by=made_by,
        skipped=0,
        shards=(shard,),
    ).write(folder)


def _resumed(folder: Path, job: CodeJob) -> _State:
    if (folder / INDEX).is_file():
        asked, state = CodeIndex.read(folder).made_by, _State(asked=job.asked)
    elif (folder / STATE).is_file():
        plain = json.loads((folder / STATE).read_text())
        plain["shards"] = [CodeShard(**shard) for shard in plain["shards"]]
        state = _State(**plain)
        asked = state.asked
    else:
        return _State(asked=job.asked)
    wanted = job.asked
    differs = [f"{key}={asked.get(key)!r}, asked is {wanted[key]!r}" for key in wanted if asked.get(key) != wanted[key]]
    if differs:
        raise ValueError(f"{folder}: holds codes made otherwise ({'; '.join(differs)}): name another folder")
    return state


def _blocks(job: CodeJob, taken: int) -> Iterator[tuple[list[ImageRecord], int, int]]:
    """Up to `shard_images` images, how many raw images they took, and how many of those were skipped."""
    passed = 0

    def rest() -> Line:
        nonlocal passed
        mine = itertools.islice(job.raw.open(), job.part - 1, None, job.parts)
        for entry in itertools.islice(mine, taken, None):
            passed += 1
            yield entry

    raw = dataclasses.replace(job.raw, open=rest)
    reader, records, counted = ImageReader(raw, job.fit, skip_bad=job.skip_bad), [], 0
    skipped = 0
    try:
        for record in reader:
            records.append(record)
            if len(records) == job.shard_images:
                yield records, passed - counted, reader.skipped - skipped
                records, counted, skipped = [], passed, reader.skipped
    except ValueError:
        if not taken or (passed and not job.skip_bad):  # behind the last shard there may be no image left
            raise
    if records or passed > counted:
        yield records, passed - counted, reader.skipped - skipped


def _encoded(records: list[ImageRecord], job: CodeJob, encode: Encode) -> Int64[np.ndarray, "n cells"]:
    labels_n = np.array([record.label for record in records], dtype=np.int64)
    check_labels(labels_n, len(job.raw.classes), job.raw.name)
    rows = [np.empty((0, job.length + 1), dtype=np.int64)]
    for start in range(0, len(records), job.batch_size):
        images = np.stack([record.image for record in records[start : start + job.batch_size]])
        for turned in (images, images[:, :, ::-1]) if job.mirror else (images,):
            codes_BD = encode(np.ascontiguousarray(turned))
            assert codes_BD.shape == (len(images), job.length) and int(codes_BD.max()) < job.num_codes
            rows.append(np.concatenate([codes_BD, labels_n[start : start + len(images), None]], 1))
    return np.concatenate(rows)
