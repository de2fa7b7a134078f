"""Encode images to the codes of a VQGAN once, so that no training runs it:

    di4c prepare codes source=<images> out=<folder> vqgan=<folder or last.ckpt> [crop=true] [part=1/4]

`out` is then a run's data.path. Interrupted, it resumes behind its last whole shard. With part=p/n, n processes each take every n-th image,
and `out` is whole when all are done.
"""

import functools
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from di4c_lm.checkpoints.vqgan import load_vqgan
from di4c_lm.core.settings import at_least, check, section, setting
from di4c_lm.data.images.codes import CodeJob, write_codes
from di4c_lm.data.images.sources import Fit, raw_images
from di4c_lm.domains.codes.domain import encode_images, fingerprint
from di4c_lm.runs.command import run_command


@section
class Settings:
    """Encode images to the codes of a VQGAN once, so that no training runs it: `source`, `out` and `vqgan` are needed."""

    source: str = setting(
        "", "images: a folder of class folders, tars (a file or a folder of them), or a data set on the hub"
    )
    out: str = setting("", "folder of codes to write")
    vqgan: str = setting("", "the VQGAN: a folder, or Taming's last.ckpt with its YAML beside it")
    split: str = setting("train", "split of a data set on the hub")
    classes: str = setting("", "classes of tars: a file of their names, one per line, or their number")
    crop: bool = setting(False, "crop and resize images of another size or mode; without it they are an error")
    mirror: bool = setting(False, "also encode each image mirrored left to right")
    skip_bad: bool = setting(False, "skip and count images that cannot be read")
    part: str = setting("1/1", "p/n: every n-th image, from the p-th on")
    shard_images: int = setting(10_000, "images per shard")
    batch_size: int = setting(64, "images in a batch")
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "cpu, cuda, or auto: cuda where there is a GPU")

    def __post_init__(self) -> None:
        at_least(self, 1, "shard_images", "batch_size")


def write_images(settings: Settings) -> None:
    """Encode, and say what was written; the shards written until an error stay."""
    for name in ("source", "out", "vqgan"):
        check(getattr(settings, name), name, getattr(settings, name), "given")
    part, parts = _part(settings.part)
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    vqgan = load_vqgan(settings.vqgan).to(automatic if settings.device == "auto" else settings.device)
    side, channels = vqgan.config.resolution, 3 if vqgan.config.in_channels == 3 else 1
    job = CodeJob(
        raw=raw_images(settings.source, split=settings.split, classes=_classes(settings.classes)),
        fit=Fit(size=(side, side), channels=channels, crop=settings.crop),
        num_codes=vqgan.num_codes,
        length=vqgan.length,
        codec=fingerprint(vqgan),
        part=part,
        parts=parts,
        **{name: getattr(settings, name) for name in ("skip_bad", "mirror", "shard_images", "batch_size")},
    )

    def encode(images: UInt8[np.ndarray, "B H W C"]) -> Int64[np.ndarray, "B D"]:
        return encode_images(vqgan, images, batch_size=settings.batch_size)

    folder = Path(settings.out) if parts == 1 else Path(settings.out) / f"part_{part}_of_{parts}"
    index = write_codes(folder, job, encode, on_shard=lambda done, bad: print(f"{done:,} rows, {bad:,} skipped"))
    shards, skipped = len(index.train), index.counts["skipped"]
    print(f"{folder}: {index.rows:,} rows of {index.length} codes in {shards} shards, {skipped:,} skipped")


def _part(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    ok = slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)
    check(ok, "part", text, "p/n with 1 <= p <= n")
    return int(number), int(count)


def _classes(text: str) -> tuple[str, ...]:
    if text.isdigit():
        return tuple(map(str, range(int(text))))
    lines = Path(text).read_text(encoding="utf-8").splitlines() if text else ()
    return tuple(line for line in lines if line.strip())


main = functools.partial(run_command, "di4c prepare codes", Settings, write_images)
