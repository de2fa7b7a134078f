"""Images in memory with their classes, and the batches a run makes of them.

Axes: N images, H rows, W columns, C channels; D = C * H * W positions. As a sequence of states an image is read channel by channel, row
by row: position (c * H + h) * W + w, the order of tauLDR's networks.
"""

import dataclasses
import functools
import hashlib
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, Integer, UInt8
from torch import Tensor

from di4c_lm.data.batches import Batch, PackedSource, mix, permutation

Shape = tuple[int, int, int]
"""(H, W, C)."""


@final
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """Images whose pixels are states 0, ..., levels - 1, each of one class. `skipped` counts files that could not be read.

    Raises `ValueError` that names the set, what was expected and what was found: no image, pixels of another type or beyond `levels`,
    a label that names no class.
    """

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int64[np.ndarray, " N"]
    classes: tuple[str, ...]
    name: str
    levels: int = 256
    skipped: int = 0

    def __post_init__(self) -> None:
        found = f"{self.name}: expected"
        if len(self.images) == 0:
            raise ValueError(f"{found} at least one image, found none")
        if self.images.shape[3] not in (1, 3):
            raise ValueError(f"{found} 1 or 3 channels, found images of shape {self.images.shape[1:]}")
        check_labels(self.labels, len(self.classes), self.name)
        if not 2 <= self.levels <= 256 or int(self.images.max()) >= self.levels:
            raise ValueError(f"{found} pixels below levels={self.levels} (2 to 256), found {int(self.images.max())}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> Shape:
        """(H, W, C) of each image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of pixels, labels, levels and class names; neither the set's name nor what was skipped matters."""
        digest = hashlib.sha256(repr((self.images.shape, self.levels, self.classes)).encode())
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def select(self, index_M: Int[np.ndarray, " M"], name: str | None = None) -> "ImageSet":
        """The images at `index_M`, with the same classes."""
        chosen = {"images": self.images[index_M], "labels": self.labels[index_M]}
        return dataclasses.replace(self, **chosen, name=name or self.name)

    def split(self, validation_share: float, seed: int) -> "Split":
        """The two parts of a seeded permutation; the validation part has at least one image and leaves at least one.

        Raises `ValueError` for a share outside (0, 1) and for a set of one image.
        """
        if not 0 < validation_share < 1:
            raise ValueError(f"validation_share must be in (0, 1), got {validation_share!r}")
        if len(self) < 2:
            raise ValueError(f"{self.name}: expected at least 2 images to split, found {len(self)}")
        order_N = permutation(len(self), seed, 0)
        cut = min(max(1, round(len(self) * validation_share)), len(self) - 1)
        held_out, kept = np.sort(order_N[:cut]), np.sort(order_N[cut:])
        return Split(self.select(kept, f"{self.name}, train"), self.select(held_out, f"{self.name}, validation"))

    def states(self) -> UInt8[np.ndarray, "N D"]:
        """The images as sequences of states."""
        return np.ascontiguousarray(self.images.transpose(0, 3, 1, 2)).reshape(len(self), -1)

    def as_bytes(self) -> UInt8[np.ndarray, "N H W C"]:
        """The images with their levels spread over 0..255."""
        return to_bytes(self.images, self.levels)


class Split(NamedTuple):
    """What is trained on, and what is held out."""

    train: ImageSet
    validation: ImageSet


def check_labels(labels_N: Integer[np.ndarray, " N"], num_classes: int, name: str) -> None:
    """Raises `ValueError` with the first label outside 0..num_classes - 1."""
    bad = np.flatnonzero((labels_N < 0) | (labels_N >= num_classes))
    if len(bad):
        where = f"image {bad[0]} has label {labels_N[bad[0]]}"
        raise ValueError(f"{name}: expected labels 0 to {num_classes - 1}, found {len(bad)} outside: {where}")


def images_of(states_ND: Int64[Tensor, "N D"], shape: Shape) -> UInt8[np.ndarray, "N H W C"]:
    """The images of sequences of states: the inverse of `ImageSet.states`.

    Raises `ValueError` where D is not H * W * C or a state is no byte.
    """
    height, width, channels = shape
    if states_ND.shape[1] != height * width * channels:
        raise ValueError(f"{states_ND.shape[1]} positions are no image of shape {shape}")
    if len(states_ND) and not 0 <= int(states_ND.min()) <= int(states_ND.max()) <= 255:
        raise ValueError(f"states {int(states_ND.min())} to {int(states_ND.max())} are no bytes 0 to 255")
    planes_NCHW = states_ND.to("cpu", torch.uint8).view(-1, channels, height, width)
    return planes_NCHW.permute(0, 2, 3, 1).contiguous().numpy()


def to_bytes(images: UInt8[np.ndarray, "N H W C"], levels: int) -> UInt8[np.ndarray, "N H W C"]:
    """Pixels of `levels` states spread over 0..255, as they are shown and as features read them; 256 levels stay as they are."""
    if levels == 256:
        return images
    return np.rint(images.astype(np.float64) * (255 / (levels - 1))).astype(np.uint8)


@final
class ImageSource:
    """Images in the order of `PackedSource`, for a `BatchStream`. `sample_id` is the image's number in `images`.

    With `flip` an image is mirrored left to right in half of its epochs, as (seed, sample_id, epoch) says.
    """

    def __init__(self, images: ImageSet, seed: int, *, flip: bool = False) -> None:
        self._packed = PackedSource(images.states(), seed)
        self._images = images
        self._labels_N = torch.from_numpy(images.labels)
        self._shape = images.shape
        self._flip = flip

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def identity(self) -> str:
        """The number of images and a hash of them; a run resumes only where these are the same."""
        return f"{len(self)} images ({self._images.fingerprint[:12]}{', flipped' if self._flip else ''})"

    def read(self, start: int, count: int) -> Batch:
        """`count` images from position `start` on."""
        batch = self._packed.read(start, count)
        x_BD = self._flipped(batch) if self._flip else batch.x
        return dataclasses.replace(batch, x=x_BD, labels=self._labels_N[batch.sample_id])

    def _flipped(self, batch: Batch) -> Int64[Tensor, "B D"]:
        height, width, channels = self._shape
        x_BCHW = batch.x.view(-1, channels, height, width)
        mirrored_B = torch.from_numpy(is_mirrored(self._packed.seed, batch.sample_id.numpy(), batch.epoch.numpy()))
        return torch.where(mirrored_B[:, None, None, None], x_BCHW.flip(3), x_BCHW).flatten(1)


def is_mirrored(
    seed: int, sample_id: Int64[np.ndarray, " B"], epoch: Int64[np.ndarray, " B"]
) -> Bool[np.ndarray, " B"]:
    """A fair coin keyed by (seed, sample_id, epoch)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    key_B = mix(np.full(len(sample_id), seed, dtype=np.uint64) + golden)
    for column_B in (sample_id, epoch):
        key_B = mix((key_B ^ column_B.astype(np.uint64)) + golden)
    return key_B >> np.uint64(63) == 1
