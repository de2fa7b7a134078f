"""Images as rows of codes, made once and kept in shards (`data/records/shards.py`): the D codes of an image row by row, then its class."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from di4c_lm.data.images.images import check_labels
from di4c_lm.data.images.sources import Fit, RawImages, decoded, refuse_none
from di4c_lm.data.records.shards import Index, Shards, row_dtype
from di4c_lm.data.records.writer import writing

Encode = Callable[[UInt8[np.ndarray, "B H W C"]], Int64[np.ndarray, "B D"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeJob:
    """What is to be encoded and how. `part` p of `parts` takes every `parts`-th image; `mirror` adds each image turned left to right."""

    raw: RawImages
    fit: Fit
    num_codes: int
    length: int
    codec: str  # fingerprint of what encodes
    skip_bad: bool = False
    mirror: bool = False
    part: int = 1
    parts: int = 1
    shard_images: int = 10_000
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("num_codes", "length", "parts", "shard_images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if not 1 <= self.part <= self.parts:
            raise ValueError(f"part must be 1 to parts={self.parts}, got {self.part}")
        if not self.raw.classes:
            raise ValueError(f"{self.raw.name}: expected classes, found none; name them")

    @property
    def made_by(self) -> dict[str, Any]:
        """What a resumed run must agree with, plain values."""
        kept = ("num_codes", "length", "codec", "skip_bad", "mirror", "part", "parts", "shard_images")
        source = {"source": self.raw.name, "classes": list(self.raw.classes), "fit": dataclasses.asdict(self.fit)}
        return {**source, **{name: getattr(self, name) for name in kept}}


def write_codes(
    folder: Path, job: CodeJob, encode: Encode, *, on_shard: Callable[[int, int], None] = lambda rows, skipped: None
) -> Index:
    """Encode what is not encoded yet, and write the index. A finished folder of the same job is left as it is.

    `on_shard` is given the rows written and the images skipped so far. Raises `ValueError` where `folder` holds another job, and as
    `decoded` and the codec do; the shards written until then stay, and a next call resumes behind them.
    """
    index = _index(job.num_codes, job.length, job.raw.classes, job.codec, job.made_by)
    with writing(folder, index, job.shard_images * (1 + job.mirror)) as writer:
        if writer.finished is not None:
            return writer.finished
        place = writer.place or {"taken": 0, "skipped": 0}
        rest = itertools.islice(job.raw.open(), job.part - 1 + place["taken"] * job.parts, None, job.parts)
        entries = decoded(dataclasses.replace(job.raw, open=lambda: rest), job.fit, skip_bad=job.skip_bad)
        while batch := list(itertools.islice(entries, job.batch_size)):
            found = [entry for entry in batch if entry is not None]
            skipped = place["skipped"] + len(batch) - len(found)
            place = {"taken": place["taken"] + len(batch), "skipped": skipped}
            if found and writer.append(_encoded(found, job, encode)):
                writer.commit(place)
                on_shard(writer.rows, skipped)
        refuse_none(job.raw, writer.rows, place["skipped"])
        on_shard(writer.rows, place["skipped"])
        return writer.close({"skipped": place["skipped"]})


def save_codes(
    folder: Path,
    codes: Int64[np.ndarray, "N D"],
    labels: Int64[np.ndarray, " N"],
    *,
    num_codes: int,
    classes: tuple[str, ...],
    codec: str,
    made_by: dict[str, Any],
) -> Index:
    """Write codes that are all in memory, as one shard. Raises `ValueError` for labels that name no class."""
    check_labels(labels, len(classes), str(folder))
    with writing(folder, _index(num_codes, codes.shape[1], classes, codec, made_by), len(codes) + 1) as writer:
        writer.append(np.concatenate([codes, labels[:, None]], 1))
        return writer.close({"skipped": 0})


def load_codes(folder: Path) -> Shards:
    """The codes in `folder`, or in all the parts it holds, each file's checksum compared.

    Raises `ValueError` with the file's name for one that is missing, damaged or of another size, for parts that are missing or of another
    codec, for codes or classes out of range, for shards of something else, and for none at all.
    """
    found = Shards.read(folder)
    if found.index.kind != "codes":
        raise ValueError(f"{folder}: expected shards of codes, found shards of {found.index.kind}")
    found = found.verified()
    most = max(int(block_nW[:, :-1].max()) for block_nW in found.blocks)
    if most >= found.index.num_states:
        raise ValueError(f"{folder}: expected codes below {found.index.num_states}, found {most}")
    check_labels(found.labels(), len(found.index.classes), str(folder))
    return found


def _index(num_codes: int, length: int, classes: tuple[str, ...], codec: str, made_by: dict[str, Any]) -> Index:
    dtype = row_dtype(max(num_codes, len(classes)))
    sizes: dict[str, Any] = {"length": length, "num_states": num_codes, "dtype": dtype}
    return Index(kind="codes", coder=codec, classes=classes, made_by=made_by, **sizes)


def _encoded(
    found: list[tuple[UInt8[np.ndarray, "H W C"], int]], job: CodeJob, encode: Encode
) -> Int64[np.ndarray, "n K"]:
    """The rows of images: their codes and classes, then with `mirror` the same of each turned left to right."""
    labels_N1 = np.array([[label] for _, label in found], dtype=np.int64)
    images, rows = np.stack([image for image, _ in found]), []
    for turned in (images, images[:, :, ::-1]) if job.mirror else (images,):
        codes_ND = encode(np.ascontiguousarray(turned))
        assert codes_ND.shape == (len(images), job.length) and int(codes_ND.max()) < job.num_codes
        rows.append(np.concatenate([codes_ND, labels_N1], 1))
    return np.concatenate(rows)
