"""Small encoded pictures for tests of the readers."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(number: int, shape: tuple[int, ...] = (6, 5, 3)) -> np.ndarray:
    """uint8 noise that belongs to `number`."""
    return np.random.default_rng(number).integers(256, size=shape).astype(np.uint8)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def write_folder(root: Path, labels: list[int]) -> Path:
    """Image n, `pixels(n)`, in class folder `class_<label>`."""
    for number, label in enumerate(labels):
        folder = root / f"class_{label}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03}.png").write_bytes(png(pixels(number)))
    return root


def write_tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
