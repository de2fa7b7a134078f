"""The images that need no network and no file: scikit-learn's handwritten digits and patches of its two photographs; and tiny ones whose
distribution is known exactly, bars on noise, as correlated as images get and small enough to enumerate.
"""

from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt8
from numpy import ndarray

from di4c_lm.data.batches import permutation
from di4c_lm.data.images.images import ImageSet, Split

_INK = 17  # the digits' grey levels, 0 to 16
_BLOCK = 64  # pixels: patches lie within blocks, and a block is of one part of the split


def digits(levels: int = _INK) -> ImageSet:
    """1,797 handwritten digits, 8x8x1, of 10 classes (Alpaydin and Kaynak 1998).

    `levels` 17: as they are. 16: the two darkest, 4 and 9 % of the pixels, are one. 256: spread over 0..255.
    Raises `ValueError` for others.
    """
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    ink = np.asarray(found.images)
    if levels == 256:
        ink = np.rint(ink * (255 / (_INK - 1)))
    elif levels in (16, 17):
        ink = np.minimum(ink, levels - 1)
    else:
        raise ValueError(f"levels must be 16, 17 or 256 for the digits, got {levels!r}")
    classes = tuple(str(name) for name in found.target_names)
    labels = np.asarray(found.target).astype(np.int64)
    return ImageSet(
        images=ink.astype(np.uint8)[..., None], labels=labels, classes=classes, name="digits", levels=levels
    )


def photograph_patches(size: int = 32, *, stride: int = 8, validation_share: float = 0.15, seed: int = 0) -> Split:
    """Patches `size` x `size` x 3 of scikit-learn's two photographs, whose names are the classes.

    Each photograph is cut into blocks of 64 x 64 pixels; a seeded share of them is held out, and patches, `stride` pixels apart, lie
    within blocks: no pixel is in both parts. Size 32 at stride 8: 25 patches a block, 3,000 in all.
    Raises `ValueError` for a size beyond a block, a stride below 1 and a share outside (0, 1).
    """
    from sklearn.datasets import load_sample_images

    if not 1 <= size <= _BLOCK:
        raise ValueError(f"size must be 1 to {_BLOCK} for the patches, got {size!r}")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride!r}")
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must be in (0, 1), got {validation_share!r}")
    found: Any = load_sample_images()
    parts: tuple[list[UInt8[np.ndarray, "N H W C"]], ...] = ([], [])
    labels: tuple[list[int], ...] = ([], [])
    for label, photograph in enumerate(found.images):
        blocks = _blocks(photograph)
        order = permutation(len(blocks), seed, label)
        cut = min(max(1, round(len(blocks) * validation_share)), len(blocks) - 1)
        for part, chosen in enumerate((order[cut:], order[:cut])):
            patches = [_patches(blocks[i], size, stride) for i in np.sort(chosen)]
            parts[part].extend(patches)
            labels[part].extend([label] * sum(map(len, patches)))
    classes = tuple(str(path).replace("\\", "/").rpartition("/")[2].partition(".")[0] for path in found.filenames)
    train, validation = (
        ImageSet(
            images=np.concatenate(images),
            labels=np.array(of_images, dtype=np.int64),
            classes=classes,
            name=f"photograph patches, {part}",
        )
        for images, of_images, part in zip(parts, labels, ("train", "validation"), strict=True)
    )
    return Split(train, validation)


def _blocks(photograph: UInt8[np.ndarray, "H W C"]) -> list[UInt8[np.ndarray, "h w C"]]:
    """Whole blocks, row by row; what is left at the right and lower edge is in no block."""
    height, width, _ = photograph.shape
    tops, lefts = (range(0, extent - _BLOCK + 1, _BLOCK) for extent in (height, width))
    return [photograph[top : top + _BLOCK, left : left + _BLOCK] for top in tops for left in lefts]


def _patches(block: UInt8[np.ndarray, "H W C"], size: int, stride: int) -> UInt8[np.ndarray, "N h w C"]:
    windows = np.lib.stride_tricks.sliding_window_view(block, (size, size), axis=(0, 1))[::stride, ::stride]
    return np.ascontiguousarray(windows.transpose(0, 1, 3, 4, 2)).reshape(-1, size, size, block.shape[2])


_MOST_IMAGES = 1 << 20


@final
@dataclass(frozen=True, kw_only=True)
class Bars:
    """One of the 2 * `size` rows and columns is bright, each as likely; then each pixel is replaced, evenly, with probability `noise`.

    p(x) = mean_k prod_d ((1 - noise) [x_d = bar_k,d] + noise / S): a mixture of 2 * size products, far from the product of its marginals.
    The class of an image is 0 where its bar is a row, 1 where it is a column. Raises `ValueError` for more images than 2^20.
    """

    size: int = 3
    levels: int = 3
    noise: float = 0.15

    def __post_init__(self) -> None:
        if self.size < 2 or self.levels < 2 or not 0 < self.noise <= 1:
            got = f"size={self.size}, levels={self.levels}, noise={self.noise}"
            raise ValueError(f"size and levels must be at least 2 and noise in (0, 1], got {got}")
        if self.num_images > _MOST_IMAGES:
            got = f"size={self.size}, levels={self.levels}: {self.num_images}"
            raise ValueError(f"images must be at most {_MOST_IMAGES} to be enumerated, got {got}")

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

    def distribution(self) -> Float64[ndarray, " N"]:
        """The probability of every image, in the order of `enumerate`; sums to 1."""
        return np.exp(self.log_prob(self.enumerate()))

    def images(self, count: int, seed: int) -> ImageSet:
        """`count` images sampled from the distribution, with their classes."""
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
