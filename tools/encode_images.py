"""Encode images to the codes of a VQGAN once, so that no training runs it.

python tools/encode_images.py SOURCE OUT --vqgan PATH [--size 256] [--crop] ...

SOURCE is a folder of class folders, tars (a file or a folder of them), or a data set of the hub such as imagenet. OUT is then a run's
data.path. A run that is cut goes on behind its last whole shard. With --part p/n, n processes each take every n-th image, and OUT is
whole when all are done.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8

from di4c_lm.checkpoints.vqgan import load_vqgan
from di4c_lm.data.images.image_files import Fit
from di4c_lm.data.images.image_sources import raw_images
from di4c_lm.data.records.code_writer import CodeJob, write_codes
from di4c_lm.domains.codes.model import encode_images, fingerprint


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="encode_images.py", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", metavar="SOURCE", help="class folders, tars, or a data set of the hub")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder of codes to write")
    parser.add_argument("--vqgan", required=True, help="a folder, or Taming's last.ckpt with its YAML beside it")
    parser.add_argument("--split", default="train", help="of a data set of the hub (default: train)")
    parser.add_argument("--classes", help="names of the classes of tars, one a line in a file, or their number")
    parser.add_argument("--crop", action="store_true", help="cut and resize images of another size or mode")
    parser.add_argument("--mirror", action="store_true", help="add each image turned left to right")
    parser.add_argument("--skip-bad", action="store_true", help="skip and count images that cannot be read")
    parser.add_argument("--part", default="1/1", help="p/n: every n-th image, from the p-th on (default: 1/1)")
    parser.add_argument("--shard-images", type=int, default=10_000, help="images read for a shard (default: 10000)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Encode as the command line says. Returns 0, or 2 for bad input; the shards written until then stay."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _parser().parse_args(arguments)
    try:
        part, parts = _part(options.part)
        vqgan = load_vqgan(options.vqgan).to(options.device)
        config = vqgan.config
        job = CodeJob(
            raw=raw_images(options.source, split=options.split, classes=_classes(options.classes)),
            fit=Fit(
                size=(config.resolution, config.resolution),
                channels=3 if config.in_channels == 3 else 1,
                crop=options.crop,
            ),
            num_codes=vqgan.num_codes,
            length=vqgan.length,
            vqgan=fingerprint(vqgan),
            skip_bad=options.skip_bad,
            mirror=options.mirror,
            part=part,
            parts=parts,
            shard_images=options.shard_images,
            batch_size=options.batch_size,
        )

        def encode(images: UInt8[np.ndarray, "B H W C"]) -> Int64[np.ndarray, "B D"]:
            return encode_images(vqgan, images, batch_size=options.batch_size)

        folder = options.out if parts == 1 else options.out / f"part_{part}_of_{parts}"
        index = write_codes(folder, job, encode, on_shard=lambda done, bad: print(f"{done:,} rows, {bad:,} skipped"))
    except (ValueError, ConnectionError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    shards = len(index.shards)
    print(f"{folder}: {index.images:,} rows of {index.length} codes in {shards} shards, {index.skipped:,} skipped")
    return 0


def _part(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--part={text!r} is impossible: allowed is p/n with 1 <= p <= n")
    return int(number), int(count)


def _classes(told: str | None) -> tuple[str, ...]:
    if told is None:
        return ()
    if told.isdigit():
        return tuple(map(str, range(int(told))))
    return tuple(line for line in Path(told).read_text(encoding="utf-8").splitlines() if line.strip())


if __name__ == "__main__":
    sys.exit(main())
