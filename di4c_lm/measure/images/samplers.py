"""What a report asks of those who sample images, and of real ones. Axes: N images, H rows, W columns, C channels."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int64, UInt8
from numpy import ndarray


@runtime_checkable
class ImageSampler(Protocol):
    """A model that samples images. `num_classes` 0: it takes no labels."""

    @property
    def name(self) -> str:
        """As tables call it."""
        ...

    @property
    def num_classes(self) -> int:
        """C."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What shapes the images, JSON-ready."""
        ...

    def sample(
        self, num: int, steps: int, seed: int, labels: Int64[ndarray, " N"] | None
    ) -> tuple[UInt8[ndarray, "N H W C"], float]:
        """`num` images of 0..255 in `steps` steps, the same for the same seed and labels, and the network calls that each took."""
        ...


@runtime_checkable
class RealImages(Protocol):
    """Real images, as `data.images.ImageSet` holds them."""

    @property
    def labels(self) -> Int64[ndarray, " N"]:
        """The class of each image."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    @property
    def name(self) -> str:
        """Where they are from."""
        ...

    @property
    def fingerprint(self) -> str:
        """The same for the same images."""
        ...

    def as_bytes(self) -> UInt8[ndarray, "N H W C"]:
        """The images, their levels spread over 0..255."""
        ...


def some(count: int, limit: int) -> Int[ndarray, " n"]:
    """At most `limit` of the numbers 0..count - 1, always the same ones, in order; at random, since classes may come in turns."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])
