"""CIFAR-10 as its authors give it (Krizhevsky 2009): the folder of the binary version or of the Python version."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from di4c_lm.data.images.images import ImageSet, Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN = tuple(f"data_batch_{n}" for n in range(1, 6))
_PIXELS = 3 * 32 * 32
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED = {
    *((module, "_reconstruct") for module in _NUMPY),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


def is_cifar_folder(path: Path) -> bool:
    """Whether a folder, or the one that unpacking the archive makes in it, holds CIFAR-10's files."""
    return _home(path) is not None


def load_cifar_folder(path: Path) -> Split:
    """The 50,000 training images and the 10,000 test images of `cifar-10-batches-bin` or `cifar-10-batches-py`, 32 x 32 x 3.

    Nothing in a file of the Python version is run: only arrays, numbers and texts are read from it.
    Raises `ValueError` with the file's name: absent, damaged, of another size, or with labels beyond 0..9.
    """
    home = _home(path)
    if home is None:
        raise ValueError(f"{path}: expected CIFAR-10's data_batch_1[.bin] and its fellows, found none")
    suffix = ".bin" if (home / f"{_TRAIN[0]}.bin").exists() else ""
    return Split(
        _images(home, [f"{name}{suffix}" for name in _TRAIN], "CIFAR-10, train"),
        _images(home, [f"test_batch{suffix}"], "CIFAR-10, test"),
    )


def _home(path: Path) -> Path | None:
    places = [path, path / "cifar-10-batches-bin", path / "cifar-10-batches-py"]
    wanted = [place for place in places if (place / f"{_TRAIN[0]}.bin").is_file() or (place / _TRAIN[0]).is_file()]
    return wanted[0] if wanted else None


def _images(home: Path, names: list[str], title: str) -> ImageSet:
    absent = [name for name in names if not (home / name).is_file()]
    if absent:
        raise ValueError(f"{home}: expected {', '.join(names)}, found no {', '.join(absent)}")
    pixels, labels = zip(
        *((_read_binary if name.endswith(".bin") else _read_python)(home / name) for name in names), strict=True
    )
    planes_NCHW = np.concatenate(pixels).reshape(-1, 3, 32, 32)
    return ImageSet(
        images=np.ascontiguousarray(planes_NCHW.transpose(0, 2, 3, 1)),
        labels=np.concatenate(labels).astype(np.int64),
        classes=CLASSES,
        name=title,
    )


def _read_binary(file: Path) -> tuple[UInt8[np.ndarray, "N D"], Any]:
    content = np.fromfile(file, dtype=np.uint8)
    if len(content) == 0 or len(content) % (_PIXELS + 1):
        raise ValueError(f"{file}: expected records of {_PIXELS + 1} bytes, found {len(content)} bytes")
    records = content.reshape(-1, _PIXELS + 1)
    return records[:, 1:], records[:, 0]


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays, numbers, texts and containers of them, and refuses everything else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is no part of a file of images")
        return super().find_class(module_name, global_name)


def _read_python(file: Path) -> tuple[UInt8[np.ndarray, "N D"], Any]:
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="bytes").load()
        pixels, labels = content[b"data"], content[b"labels"]
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), _PIXELS):
            wanted = f"expected {len(labels)} images as uint8 (N, {_PIXELS})"
            raise ValueError(f"{wanted}, found {pixels.dtype} {pixels.shape}")
        return pixels, labels
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{file}: expected CIFAR-10's Python version, found: {reason}") from error
