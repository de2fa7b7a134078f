"""What a report asks of those who sample images, and of real ones. Axes: N images, H rows, W columns, C channels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Int, Int64, UInt8
from numpy import ndarray


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSampler:
    """A model as reports on images call it.

    Args:
        sample: number of images, steps, seed and the class of each image to images of 0..255, the same for the same arguments, and the
            network calls that each took.
        facts: what shapes the images, JSON-ready: sampler, guidance, temperature, schedule, weights, ...
        num_classes: C; 0: it takes no classes, and is given None.
    """

    name: str
    sample: Callable[[int, int, int, Any], tuple[UInt8[ndarray, "N H W C"], float]]
    facts: Mapping[str, Any]
    num_classes: int = 0


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
