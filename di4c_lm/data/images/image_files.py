"""Images one after the other from folders of classes and from webdataset-style tars, decoded and checked, none of them kept.

What is read is a line of `RawImage` (bytes and label) and `Fault` (what could not be read); an `ImageReader` decodes it.
"""

import dataclasses
import io
import json
import logging
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from jaxtyping import UInt8

from di4c_lm.data.images.images import ImageSet

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_DECODE_ERRORS = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error)


@final
@dataclasses.dataclass(frozen=True)
class RawImage:
    """An encoded image, its class, and where it was found."""

    key: str
    content: bytes
    label: int


@final
@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that should have been an image, and why it is none."""

    key: str
    reason: str


Line: TypeAlias = Iterator[RawImage | Fault]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class RawImages:
    """`open()` starts reading from the first image. `classes` is empty where only the labels tell how many there are."""

    name: str
    classes: tuple[str, ...]
    open: Callable[[], Line]


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What an image must be.

    size       (H, W); None: that of the first image
    channels   3 (RGB) or 1 (grey)
    crop       false: another size or mode is an error. True: the middle is cut out, resized (bicubic) and converted
    """

    size: tuple[int, int] | None = None
    channels: int = 3
    crop: bool = False

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels!r} is impossible: allowed are 1 (grey) and 3 (RGB)")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size={self.size!r} is impossible: allowed are at least 1 row and 1 column")
        if self.crop and self.size is None:
            raise ValueError("size=None is impossible where images are cropped: allowed is (H, W)")


@final
@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """A decoded image, its class, and where it was found."""

    key: str
    image: UInt8[np.ndarray, "H W C"]
    label: int


@final
class ImageReader:
    """Decoded images of one shape. `skipped` counts those left out of the last pass by `skip_bad`, which is also logged.

    Raises `ValueError` while iterating: a file that is damaged or of another size or mode, or a label that names no class, each by its
    name (with `skip_bad` these are skipped and counted); no image at all.
    """

    def __init__(self, raw: RawImages, fit: Fit, *, skip_bad: bool = False) -> None:
        self.raw = raw
        self.fit = fit
        self.skip_bad = skip_bad
        self.skipped = 0

    def __iter__(self) -> Iterator[ImageRecord]:
        self.skipped = 0
        fit, found = self.fit, 0
        for entry in self.raw.open():
            try:
                record = self._decode(entry, fit)
            except ValueError as error:
                if not self.skip_bad:
                    raise ValueError(f"{error} (skip_bad=true skips and counts such images)") from error
                self.skipped += 1
                continue
            found += 1
            fit = fit if fit.size else dataclasses.replace(fit, size=record.image.shape[:2])
            yield record
        if self.skipped:
            logger.warning("%s: %d images that could not be used were skipped", self.raw.name, self.skipped)
        if not found:
            raise ValueError(f"{self.raw.name}: expected images, found none that can be used ({self.skipped} skipped)")

    def _decode(self, entry: RawImage | Fault, fit: Fit) -> ImageRecord:
        if isinstance(entry, Fault):
            raise ValueError(f"{entry.key}: {entry.reason}")
        if entry.label < 0 or (self.raw.classes and entry.label >= len(self.raw.classes)):
            allowed = f"0 to {len(self.raw.classes) - 1}" if self.raw.classes else "at least 0"
            raise ValueError(f"{entry.key}: expected a label {allowed}, found {entry.label}")
        try:
            return ImageRecord(entry.key, decode(entry.content, fit), entry.label)
        except ValueError as error:
            raise ValueError(f"{entry.key}: {error}") from error

    def collect(self) -> ImageSet:
        """All images in memory, as a set. Raises as iterating does."""
        records = list(self)
        labels = np.array([record.label for record in records], dtype=np.int64)
        return ImageSet(
            images=np.stack([record.image for record in records]),
            labels=labels,
            classes=self.raw.classes or tuple(str(n) for n in range(int(labels.max()) + 1)),
            name=self.raw.name,
            skipped=self.skipped,
        )


def decode(content: bytes, fit: Fit) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of an encoded image. Raises `ValueError`: damaged, or not what `fit` asks for."""
    from PIL import Image, ImageOps

    mode = "RGB" if fit.channels == 3 else "L"
    try:
        image: Any = Image.open(io.BytesIO(content))
        image.load()
    except (*_DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise ValueError(f"a damaged image or none: {type(error).__name__}: {error}") from error
    if fit.crop:
        assert fit.size is not None
        height, width = fit.size
        image = ImageOps.fit(image.convert(mode), (width, height), method=Image.Resampling.BICUBIC)
    if image.mode != mode:
        raise ValueError(f"expected an image of mode {mode}, found {image.mode}")
    if fit.size is not None and image.size[::-1] != fit.size:
        raise ValueError(f"expected {fit.size[0]} x {fit.size[1]} pixels, found {image.size[1]} x {image.size[0]}")
    return np.asarray(image, dtype=np.uint8).reshape(image.size[1], image.size[0], fit.channels)


def folder_images(path: Path) -> RawImages:
    """A folder of folders, one a class, the images however deep inside; classes in the order of their names.

    Raises `ValueError` for a folder without class folders or without images, and for a class folder without any.
    """
    classes = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    if not classes:
        raise ValueError(f"{path}: expected a folder for each class with images inside, found no folder")
    files = [sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) for folder in classes]
    empty = [folder.name for folder, inside in zip(classes, files, strict=True) if not inside]
    if empty:
        raise ValueError(f"{path}: expected images ({', '.join(SUFFIXES)}) in each class folder, none in {empty[:8]}")

    def read() -> Line:
        for label, inside in enumerate(files):
            for file in inside:
                try:
                    content = file.read_bytes()
                except OSError as error:
                    yield Fault(str(file), f"cannot be read: {error}")
                else:
                    yield RawImage(str(file), content, label)

    return RawImages(name=str(path), classes=tuple(folder.name for folder in classes), open=read)


def tar_images(path: Path, *, classes: Sequence[str] = ()) -> RawImages:
    """Webdataset-style tars: one file, or a folder of them in the order of their names.

    A sample is a run of members that share a name up to the first dot of its last part: an image (`.jpg`, `.png`, ...) and `.cls` (its
    label in digits) or `.json` (an object with the label under "label" or "cls"). With `classes` labels must name one of them.
    Raises `ValueError` for a folder without tars.
    """
    tars = sorted(path.glob("*.tar*")) if path.is_dir() else [path]
    if not tars:
        raise ValueError(f"{path}: expected files *.tar, *.tar.gz, found none")

    def read() -> Line:
        for tar in tars:
            yield from _tar_samples(tar)

    return RawImages(name=str(path), classes=tuple(classes), open=read)


def _tar_samples(path: Path) -> Line:
    sample: dict[str, bytes] = {}
    current, num_read = "", 0
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                if (name := folder + slash + stem) != current:
                    yield from _sample(f"{path}:{current}", sample)
                    sample, current, num_read = {}, name, num_read + 1
                file = tar.extractfile(member)
                assert file is not None
                sample[f".{suffix.lower()}"] = file.read()
    except (*_DECODE_ERRORS, tarfile.TarError) as error:
        yield Fault(str(path), f"damaged after {max(0, num_read - 1)} images: {type(error).__name__}: {error}")
        return
    yield from _sample(f"{path}:{current}", sample)


def _sample(key: str, parts: dict[str, bytes]) -> Line:
    """One sample's parts by suffix; none, nothing."""
    if not parts:
        return
    image = next((parts[suffix] for suffix in SUFFIXES if suffix in parts), None)
    if image is None:
        yield Fault(key, f"expected an image ({', '.join(SUFFIXES)}), found {sorted(parts)}")
        return
    try:
        label = _label(parts)
    except (ValueError, KeyError, TypeError) as error:
        yield Fault(key, f"expected a label in .cls or .json, found {sorted(parts)} ({type(error).__name__}: {error})")
    else:
        yield RawImage(key, image, label)


def _label(parts: dict[str, bytes]) -> int:
    if ".cls" in parts:
        return int(parts[".cls"].decode())
    told = json.loads(parts[".json"])
    return int(told["label"] if "label" in told else told["cls"])
