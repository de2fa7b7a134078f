"""Tiny images whose joint law is known exactly: bars on noise, as correlated as images get and small enough to enumerate.

Axes: N images, D = size * size positions, S levels, K bars.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64, Integer
from numpy import ndarray

from di4c_lm.data.images.images import ImageSet

_MOST_IMAGES = 1 << 20


@final
@dataclass(frozen=True, kw_only=True)
class Bars:
    """One of the 2 * `size` rows and columns is bright, each as likely; then each pixel is drawn anew, evenly, with probability `noise`.

    p(x) = mean_k prod_d ((1 - noise) [x_d = bar_k,d] + noise / S): a mixture of 2 * size products, far from the product of its marginals.
    The class of an image is 0 where its bar is a row, 1 where it is a column. Raises `ValueError` for more images than 2^20.
    """

    size: int = 3
    levels: int = 3
    noise: float = 0.15

    def __post_init__(self) -> None:
        if self.size < 2 or self.levels < 2 or not 0 < self.noise <= 1:
            told = f"size={self.size}, levels={self.levels}, noise={self.noise}"
            raise ValueError(f"{told} is impossible: allowed are at least 2, at least 2, and (0, 1]")
        if self.num_images > _MOST_IMAGES:
            raise ValueError(
                f"size={self.size}, levels={self.levels} is impossible: {self.num_images} images cannot be enumerated, "
                f"allowed are {_MOST_IMAGES}"
            )

    @property
    def num_images(self) -> int:
        """S^D."""
        return self.levels ** (self.size * self.size)

    def bars(self) -> Int64[ndarray, "K D"]:
        """The images without noise: rows from the top, then columns from the left."""
        rows = np.eye(self.size, dtype=np.int64)[:, :, None].repeat(self.size, 2)
        return (self.levels - 1) * np.concatenate([rows, rows.transpose(0, 2, 1)]).reshape(2 * self.size, -1)

    def log_prob(self, x: Integer[ndarray, "N D"]) -> Float64[ndarray, " N"]:
        """Exact log p(x)."""
        match, other = 1 - self.noise + self.noise / self.levels, self.noise / self.levels
        same_NK = (x[:, None] == self.bars()).sum(2)
        log_NK = same_NK * np.log(match) + (x.shape[1] - same_NK) * np.log(other)
        most_N = log_NK.max(1)
        return most_N + np.log(np.exp(log_NK - most_N[:, None]).mean(1))

    def enumerate(self) -> Int64[ndarray, "N D"]:
        """Every image, in the order of `index`."""
        digits = self.levels ** np.arange(self.size * self.size, dtype=np.int64)
        return np.arange(self.num_images, dtype=np.int64)[:, None] // digits % self.levels

    def index(self, x: Integer[ndarray, "N D"]) -> Int64[ndarray, " N"]:
        """The number of each image in `enumerate`."""
        return x.astype(np.int64) @ (self.levels ** np.arange(self.size * self.size, dtype=np.int64))

    def law(self) -> Float64[ndarray, " N"]:
        """The probability of every image, in the order of `enumerate`; sums to 1."""
        return np.exp(self.log_prob(self.enumerate()))

    def images(self, count: int, seed: int) -> ImageSet:
        """`count` images drawn from the law, with their classes."""
        rng = np.random.default_rng([seed, 5])
        bar_N = rng.integers(2 * self.size, size=count)
        clean_ND = self.bars()[bar_N]
        noise_ND = rng.integers(self.levels, size=clean_ND.shape)
        x_ND = np.where(rng.random(clean_ND.shape) < self.noise, noise_ND, clean_ND)
        return ImageSet(
            images=x_ND.astype(np.uint8).reshape(count, self.size, self.size, 1),
            labels=(bar_N >= self.size).astype(np.int64),
            classes=("row", "column"),
            name=f"bars {self.size} x {self.size}",
            levels=self.levels,
        )
