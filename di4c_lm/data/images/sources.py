"""Images from folders of classes, webdataset-style tars and the hub, one after the other, decoded and checked; and whole sets of them by
the name of their source.

What is read is a line of `RawImage`, bytes and label or why there are none; `decoded` makes pixels of it.
"""

import contextlib
import dataclasses
import io
import json
import logging
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from jaxtyping import UInt8

from di4c_lm.core.retry import is_local, look_for_hub
from di4c_lm.data.images.builtin import digits, photograph_patches
from di4c_lm.data.images.cifar import is_cifar_folder, load_cifar_folder
from di4c_lm.data.images.images import ImageSet, Split
from di4c_lm.data.reading import ask_hub, is_hidden, opened

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF")  # of these suffixes: no other decoder is tried
_MOST_CLASSES = 1 << 16  # where nothing but the labels says how many there are
_MOST_BYTES = 1 << 28  # of an image in a tar
_DECODE_ERRORS = (OSError, EOFError, SyntaxError, ValueError, struct.error, zlib.error)


@final
@dataclasses.dataclass(frozen=True)
class RawImage:
    """An encoded image, its class, and where it was found; or, with a `fault`, why what should have been one is none."""

    key: str
    content: bytes = b""
    label: int = 0
    fault: str = ""


Line: TypeAlias = Iterator[RawImage]


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
            raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {self.channels!r}")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be at least 1 row and 1 column, got {self.size!r}")
        if self.crop and self.size is None:
            raise ValueError("size must be (H, W) where images are cropped, got None")


def decoded(
    raw: RawImages, fit: Fit, *, skip_bad: bool = False
) -> Iterator[tuple[UInt8[np.ndarray, "H W C"], int] | None]:
    """Pixels and label of every image, all of one shape; with `skip_bad` None, also logged, for each that cannot be used.

    Raises `ValueError` for a file that is damaged or of another size or mode, or a label that names no class, each by its name.
    """
    num_classes, skipped = len(raw.classes) or _MOST_CLASSES, 0
    for entry in raw.open():
        try:
            if entry.fault:
                raise ValueError(entry.fault)
            if not 0 <= entry.label < num_classes:
                raise ValueError(f"expected a label 0 to {num_classes - 1}, found {entry.label}")
            image = decode(entry.content, fit)
        except ValueError as error:
            if not skip_bad:
                raise ValueError(f"{entry.key}: {error} (skip_bad=true skips and counts such images)") from error
            skipped += 1
            yield None
        else:
            fit = fit if fit.size else dataclasses.replace(fit, size=image.shape[:2])
            yield image, entry.label
    if skipped:
        logger.warning("%s: %d images that could not be used were skipped", raw.name, skipped)


def refuse_none(raw: RawImages, used: int, skipped: int) -> None:
    """Raise `ValueError` where none of the images of `raw` was used."""
    if not used:
        raise ValueError(f"{raw.name}: expected images, found none that can be used ({skipped} skipped)")


def collect(raw: RawImages, fit: Fit, *, skip_bad: bool = False) -> ImageSet:
    """All images in memory, as a set. Raises as `decoded` does, and for no image at all."""
    entries = list(decoded(raw, fit, skip_bad=skip_bad))
    found = [entry for entry in entries if entry is not None]
    refuse_none(raw, len(found), len(entries))
    labels = np.array([label for _, label in found], dtype=np.int64)
    return ImageSet(
        images=np.stack([image for image, _ in found]),
        labels=labels,
        classes=raw.classes or tuple(str(n) for n in range(int(labels.max()) + 1)),
        name=raw.name,
        skipped=len(entries) - len(found),
    )


def decode(content: bytes, fit: Fit) -> UInt8[np.ndarray, "H W C"]:
    """The pixels of an encoded image. Raises `ValueError`: damaged, or not what `fit` asks for."""
    from PIL import Image, ImageOps

    mode = "RGB" if fit.channels == 3 else "L"
    with _damage_named():
        image: Any = Image.open(io.BytesIO(content), formats=_FORMATS)
    if not fit.crop:  # said before its pixels take memory
        if image.mode != mode:
            raise ValueError(f"expected an image of mode {mode}, found {image.mode}")
        if fit.size not in (None, image.size):  # else EXIF may say that it is shown turned by a quarter
            _check_size(image, fit)
    with _damage_named():
        image.load()
        image = ImageOps.exif_transpose(image)
    if not fit.crop:
        _check_size(image, fit)
    else:
        assert fit.size is not None
        height, width = fit.size
        image = ImageOps.fit(image.convert(mode), (width, height), method=Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8).reshape(image.size[1], image.size[0], fit.channels)


def _check_size(image: Any, fit: Fit) -> None:
    if fit.size is not None and image.size[::-1] != fit.size:
        raise ValueError(f"expected {fit.size[0]} x {fit.size[1]} pixels, found {image.size[1]} x {image.size[0]}")


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"a damaged image or none: it is none of {', '.join(_FORMATS)}") from error
    except (*_DECODE_ERRORS, Image.DecompressionBombError) as error:
        raise ValueError(f"a damaged image or none: {type(error).__name__}: {error}") from error


def folder_images(path: Path) -> RawImages:
    """A folder of folders, one a class, the images however deep inside; classes in the order of their names.

    Raises `ValueError` for a folder without class folders or without images, and for a class folder without any.
    """
    classes = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not is_hidden(Path(folder.name))]
    if not classes:
        raise ValueError(f"{path}: expected a folder for each class with images inside, found no folder")
    every = [sorted(p for p in folder.rglob("*") if not is_hidden(p.relative_to(path))) for folder in classes]
    files = [[p for p in inside if p.suffix.lower() in SUFFIXES] for inside in every]
    others = Counter(p.suffix for inside in every for p in inside if p.is_file() and p.suffix.lower() not in SUFFIXES)
    if others:
        logger.warning(
            "%s: left out, by suffix: %s", path, ", ".join(f"{n} {s or 'without'}" for s, n in others.items())
        )
    empty = [folder.name for folder, inside in zip(classes, files, strict=True) if not inside]
    if empty:
        raise ValueError(f"{path}: expected images ({', '.join(SUFFIXES)}) in each class folder, none in {empty[:8]}")

    def read() -> Line:
        for label, inside in enumerate(files):
            for file in inside:
                try:
                    content = file.read_bytes()
                except OSError as error:
                    yield RawImage(str(file), fault=f"cannot be read: {error}")
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
        with opened(str(path)) as packed, tarfile.open(fileobj=packed, mode="r|*") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not member.isfile() or not stem:
                    continue
                if member.size > _MOST_BYTES:
                    raise ValueError(
                        f"{member.name} is said to have {member.size:,} bytes, allowed are {_MOST_BYTES:,}"
                    )
                if (name := folder + slash + stem) != current:
                    yield from _sample(f"{path}:{current}", sample)
                    sample, current, num_read = {}, name, num_read + 1
                file = tar.extractfile(member)
                assert file is not None
                sample[f".{suffix.lower()}"] = file.read()
    except (*_DECODE_ERRORS, tarfile.TarError) as error:
        yield RawImage(str(path), fault=f"damaged after {max(0, num_read - 1)} images: {type(error).__name__}: {error}")
        return
    yield from _sample(f"{path}:{current}", sample)


def _sample(key: str, parts: dict[str, bytes]) -> Line:
    """One sample's parts by suffix; none, nothing."""
    image = next((parts[suffix] for suffix in SUFFIXES if suffix in parts), None)
    if image is None and parts:
        yield RawImage(key, fault=f"expected an image ({', '.join(SUFFIXES)}), found {sorted(parts)}")
    elif image is not None:
        try:
            fields = {"label": parts[".cls"].decode()} if ".cls" in parts else json.loads(parts[".json"])
            yield RawImage(key, image, int(fields["label"] if "label" in fields else fields["cls"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            yield RawImage(key, fault=f"expected a label in .cls or .json, found {sorted(parts)} ({reason})")


# Whole sets by the name of their source

BUILT_IN = ("digits", "patches")
HUB_NAMES = {"cifar10": "uoft-cs/cifar10", "imagenet": "ILSVRC/imagenet-1k"}
OFFLINE_WAY = "an .npz file, CIFAR-10's own folder, a folder of class folders, or tars"
_HELD_OUT = ("validation", "val", "test")
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label", "cls")


def load_split(
    source: str,
    *,
    seed: int,
    validation_share: float = 0.1,
    levels: int | None = None,
    fit: Fit | None = None,
    skip_bad: bool = False,
) -> Split:
    """Training and held-out images of `source`, all in memory.

    "digits", "patches": built in (`levels` and the size of `fit` choose their form). An .npz file with `images` uint8 (N, H, W, C),
    `labels` and, if it likes, `classes`. A folder: CIFAR-10's own; class folders; tars; either of these under train/ and validation/, val/
    or test/. Else a data set of the hub, "cifar10" and "imagenet" by these names. What has no held-out part of its own is split by a
    seeded permutation. Raises `ValueError` as the readers do, `ConnectionError` where the hub does not answer.
    """
    path = Path(source).expanduser()
    if source == "digits":
        return digits(levels or 17).split(validation_share, seed)
    if source == "patches":
        size = fit.size[0] if fit and fit.size else 32
        return photograph_patches(size, validation_share=validation_share, seed=seed)
    if levels not in (None, 256):
        raise ValueError(f"levels must be 256 for {source}, got {levels!r}: other levels are for the digits")
    if path.suffix.lower() == ".npz":
        return load_npz(path, fit).split(validation_share, seed)
    if path.is_dir() and is_cifar_folder(path):
        return load_cifar_folder(path)
    wanted = fit or Fit()
    parts = [collect(raw, wanted, skip_bad=skip_bad) for raw in _parts(source)]
    return parts[0].split(validation_share, seed) if len(parts) == 1 else _same_classes(*parts)


def raw_images(source: str, *, split: str = "train", classes: tuple[str, ...] = ()) -> RawImages:
    """The encoded images of a folder of classes, of tars or of the hub, one after the other: for sets beyond memory.

    `classes` names those of tars, which do not say; `split` is the hub's. Raises `ValueError` for a path that is absent or of no such kind.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return tar_images(path, classes=classes) if any(path.glob("*.tar*")) else folder_images(path)
    if path.is_file() and ".tar" in path.suffixes:
        return tar_images(path, classes=classes)
    if is_local(source) or source.endswith(".tar"):
        found = "another kind of file" if path.exists() else "nothing"
        raise ValueError(f"{source}: expected {', '.join(BUILT_IN)}, {OFFLINE_WAY} or a hub name, found {found}")
    return hub_images(source, split)


def load_npz(path: Path, fit: Fit | None = None) -> ImageSet:
    """Images of an .npz file; nothing pickled is read.

    Raises `ValueError` with the file's name: absent, damaged, without `images` or `labels`, of another type or shape, of a size other than
    `fit` asks for, or with labels that name no class.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in ("images", "labels", "classes") if name in archive.files}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: a damaged .npz file or none: {type(error).__name__}: {error}") from error
    absent = [name for name in ("images", "labels") if name not in found]
    if absent:
        raise ValueError(f"{path}: expected the arrays images and labels, found no {' and no '.join(absent)}")
    images, labels = found["images"], found["labels"]
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"{path}: expected images as uint8 (N, H, W, C) with 1 or 3 channels, found {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or len(labels) == 0:
        raise ValueError(f"{path}: expected {len(images)} whole numbers as labels, found {labels.dtype} {labels.shape}")
    if fit is not None and fit.size is not None and images.shape[1:3] != fit.size:
        raise ValueError(f"{path}: expected images of {fit.size} pixels, found {images.shape[1:3]}")
    most = int(labels.max())
    if "classes" not in found and most >= _MOST_CLASSES:
        raise ValueError(f"{path}: expected labels below {_MOST_CLASSES}, found {most}")
    names = found.get("classes", np.arange(max(0, most) + 1)).astype(str)
    return ImageSet(images=images, labels=labels.astype(np.int64), classes=tuple(names.tolist()), name=str(path))


def hub_images(dataset: str, split: str) -> RawImages:
    """A data set of images on the hub, or one that `datasets` has cached. No code of the data set's is run.

    Raises `ValueError` for an unknown data set, split or columns, `ConnectionError` where the hub does not answer.
    """
    name = HUB_NAMES.get(dataset, dataset)
    look_for_hub()
    rows = ask_hub(lambda datasets: datasets.load_dataset(name, split=split), f"{dataset}, split {split}", OFFLINE_WAY)
    image, label = (
        next((column for column in allowed if column in rows.column_names), None)
        for allowed in (_IMAGE_COLUMNS, _LABEL_COLUMNS)
    )
    if image is None or label is None:
        wanted = f"one of {_IMAGE_COLUMNS} and one of {_LABEL_COLUMNS}"
        raise ValueError(f"{dataset}: expected the columns {wanted}, found {rows.column_names}")
    classes = getattr(rows.features[label], "names", None)

    def read() -> Line:
        import datasets

        for number, row in enumerate(rows.cast_column(image, datasets.Image(decode=False))):
            key, encoded = f"{name}, {split}, row {number}", row[image]
            if encoded is None or row[label] is None:
                yield RawImage(key, fault="the image or its label is missing")
                continue
            content = encoded["bytes"] if encoded["bytes"] is not None else Path(encoded["path"]).read_bytes()
            yield RawImage(key, content, row[label])

    return RawImages(name=f"{name}, {split}", classes=tuple(classes or ()), open=read)


def _parts(source: str) -> list[RawImages]:
    """The training images of a source, and the held-out ones where it has any."""
    path = Path(source).expanduser()
    if (path / "train").is_dir():
        folders = [path / "train", *(path / name for name in _HELD_OUT if (path / name).is_dir())]
        return [raw_images(str(folder)) for folder in folders[:2]]
    if is_local(source) or source.endswith(".tar"):
        return [raw_images(source)]
    look_for_hub()
    splits = ask_hub(
        lambda datasets: datasets.get_dataset_split_names(HUB_NAMES.get(source, source)), source, OFFLINE_WAY
    )
    return [hub_images(source, name) for name in ("train", *(name for name in _HELD_OUT if name in splits))[:2]]


def _same_classes(train: ImageSet, held_out: ImageSet) -> Split:
    if train.classes[: len(held_out.classes)] != held_out.classes or train.shape != held_out.shape:
        raise ValueError(
            f"{held_out.name}: expected the classes and the size of {train.name}, "
            f"found {len(held_out.classes)} classes, {held_out.shape} for {len(train.classes)} classes, {train.shape}"
        )
    return Split(train, dataclasses.replace(held_out, classes=train.classes))
