"""Images by the name of their source: built in, a file, a folder, or a data set of the hub."""

import dataclasses
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from di4c_lm.core.retry import with_patience
from di4c_lm.data.images.builtin_images import digits, photograph_patches
from di4c_lm.data.images.cifar import is_cifar_folder, load_cifar_folder
from di4c_lm.data.images.image_files import (
    Fault,
    Fit,
    ImageReader,
    Line,
    RawImage,
    RawImages,
    folder_images,
    tar_images,
)
from di4c_lm.data.images.images import ImageSet, Split

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
        raise ValueError(
            f"levels={levels!r} is impossible for {source}: allowed is 256; other levels are for the digits"
        )
    if path.suffix.lower() == ".npz":
        return load_npz(path, fit).split(validation_share, seed)
    if path.is_dir() and is_cifar_folder(path):
        return load_cifar_folder(path)
    wanted = fit or Fit()
    parts = [ImageReader(raw, wanted, skip_bad=skip_bad).collect() for raw in _parts(source)]
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
    if not _is_hub_name(source):
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
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
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
    names = found.get("classes", np.arange(max(0, int(labels.max())) + 1)).astype(str)
    return ImageSet(images=images, labels=labels.astype(np.int64), classes=tuple(names.tolist()), name=str(path))


def hub_images(dataset: str, split: str) -> RawImages:
    """A data set of images on the hub, or one that `datasets` has cached. No code of the data set's is run.

    Raises `ValueError` for an unknown data set, split or columns, `ConnectionError` where the hub does not answer.
    """
    name = HUB_NAMES.get(dataset, dataset)
    rows = _hub(lambda datasets: datasets.load_dataset(name, split=split), f"{dataset}, split {split}")
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
            key, told = f"{name}, {split}, row {number}", row[image]
            if told is None or row[label] is None:
                yield Fault(key, "the image or its label is missing")
                continue
            content = told["bytes"] if told["bytes"] is not None else Path(told["path"]).read_bytes()
            yield RawImage(key, content, row[label])

    return RawImages(name=f"{name}, {split}", classes=tuple(classes or ()), open=read)


def _hub(action: Callable[[Any], Any], what: str) -> Any:
    """`action(datasets)`, with patience and named errors."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return with_patience(lambda: action(datasets), what, OFFLINE_WAY)
    except (FileNotFoundError, ValueError, DatasetsError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"{what}: cannot be loaded: {reason} (offline: {OFFLINE_WAY})") from error


def _parts(source: str) -> list[RawImages]:
    """The training images of a source, and the held-out ones where it has any."""
    path = Path(source).expanduser()
    if (path / "train").is_dir():
        folders = [path / "train", *(path / name for name in _HELD_OUT if (path / name).is_dir())]
        return [raw_images(str(folder)) for folder in folders[:2]]
    if not _is_hub_name(source):
        return [raw_images(source)]
    splits = _hub(lambda datasets: datasets.get_dataset_split_names(HUB_NAMES.get(source, source)), source)
    return [hub_images(source, name) for name in ("train", *(name for name in _HELD_OUT if name in splits))[:2]]


def _is_hub_name(source: str) -> bool:
    path = Path(source).expanduser()
    return not (path.exists() or path.suffix == ".tar" or source.startswith((".", "/", "~")) or source.count("/") > 1)


def _same_classes(train: ImageSet, held_out: ImageSet) -> Split:
    if train.classes[: len(held_out.classes)] != held_out.classes or train.shape != held_out.shape:
        raise ValueError(
            f"{held_out.name}: expected the classes and the size of {train.name}, "
            f"found {len(held_out.classes)} classes, {held_out.shape} for {len(train.classes)} classes, {train.shape}"
        )
    return Split(train, dataclasses.replace(held_out, classes=train.classes))
