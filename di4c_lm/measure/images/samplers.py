"""What a report asks of those who draw images, and of real ones. Axes: N images, H rows, W columns, C channels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

from jaxtyping import Int64, UInt8
from numpy import ndarray


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDraw:
    """Images of 0..255 and the network calls each of them took."""

    images: UInt8[ndarray, "N H W C"]
    nfe: float


@runtime_checkable
class Drawn(Protocol):
    """What a sampler gives: images of 0..255 and the network calls each of them took; `ImageDraw` is one."""

    @property
    def images(self) -> UInt8[ndarray, "N H W C"]:
        """Of 0..255."""
        ...

    @property
    def nfe(self) -> float:
        """Network calls an image."""
        ...


@runtime_checkable
class ImageSampler(Protocol):
    """A model that draws images. `num_classes` 0: it takes no labels. `facts`, JSON-ready: guidance, temperature, schedule, weights, ..."""

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

    def sample(self, num: int, steps: int, seed: int, labels: Int64[ndarray, " N"] | None) -> Drawn:
        """`num` images in `steps` steps; the same for the same seed and labels."""
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
