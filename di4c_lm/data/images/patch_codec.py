"""Codes of images without a network: square patches, each replaced by the nearest of K means of patches."""

from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.core.files import read_json, save_tensors, whole_file, write_json
from di4c_lm.core.settings import at_least, section, setting

ARCHITECTURE, FORMAT_VERSION = "di4c_lm.PatchCodec", 1
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_FIT_PATCHES = 200_000  # that the means are of, evenly spread over the images
_ROWS = 1 << 14  # patches whose distances are held at once
Shape = tuple[int, int, int]
"""(C, H, W)."""


@section
class PatchCodecConfig:
    """What makes the codes where no VQGAN is given: k-means of patches."""

    num_codes: int = setting(64, "K, how many codes there are")
    patch: int = setting(2, "pixels along a side of the patch that one code stands for")
    seed: int = setting(0, "random seed of the k-means")

    def __post_init__(self) -> None:
        at_least(self, 2, "num_codes")
        at_least(self, 1, "patch")


@final
class PatchCodec(nn.Module):
    """Images of `shape` in [-1, 1] to codes and back, as a `VqGan` does; `means_KE` are the patches, channel by channel, row by row.

    Raises `ValueError` for a patch that does not divide the image, and for means of another size.
    """

    means_KE: Float[Tensor, "K E"]

    def __init__(self, means_KE: Float[Tensor, "K E"], shape: Shape, patch: int) -> None:
        super().__init__()
        channels, height, width = shape
        if height % patch or width % patch:
            raise ValueError(f"codec.patch must divide the images' {height} x {width} pixels, got {patch}")
        if means_KE.shape[1] != channels * patch**2:
            raise ValueError(f"means must hold {channels * patch**2} numbers each, got {means_KE.shape[1]}")
        self.shape, self.patch = shape, patch
        self.register_buffer("means_KE", means_KE.float())

    @property
    def num_codes(self) -> int:
        """K."""
        return len(self.means_KE)

    @property
    def length(self) -> int:
        """D, codes an image."""
        _, height, width = self.shape
        return height * width // self.patch**2

    @classmethod
    def fit(cls, images: Float[Tensor, "N C H W"], config: PatchCodecConfig) -> "PatchCodec":
        """The means of the patches of `images` in [-1, 1]. Raises `ValueError` for fewer different patches than codes."""
        from sklearn.cluster import KMeans

        blank = cls(torch.zeros(config.num_codes, images.shape[1] * config.patch**2), _shape(images), config.patch)
        per_image = max(1, _FIT_PATCHES // blank.length)
        rows_ME = blank._patches(images[:: -(-len(images) // per_image)])
        different = len(rows_ME.unique(dim=0))
        if different < config.num_codes:
            raise ValueError(
                f"codec.num_codes must be at most {different}, the images' different patches, got {config.num_codes}"
            )
        options: Any = {"n_init": 1, "random_state": config.seed}
        found = KMeans(config.num_codes, **options).fit(rows_ME.double().numpy())
        return cls(torch.from_numpy(found.cluster_centers_), _shape(images), config.patch)

    def _patches(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "M E"]:
        return F.unfold(images, self.patch, stride=self.patch).movedim(1, 2).flatten(0, 1)

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B D"]:
        """The nearest mean of each patch, row by row. Raises `ValueError` for another size or number of channels."""
        if _shape(image) != self.shape:
            raise ValueError(f"image: expected shape (B, {', '.join(map(str, self.shape))}), got {tuple(image.shape)}")
        means_KE = self.means_KE
        nearest = [
            (means_KE.square().sum(1) - 2 * rows_ME @ means_KE.T).argmin(1)
            for rows_ME in self._patches(image.float()).split(_ROWS)
        ]
        return torch.cat(nearest).view(len(image), self.length)

    @torch.no_grad()
    def decode(self, codes: Int64[Tensor, "B D"]) -> Float[Tensor, "B C H W"]:
        """The image of codes, in [-1, 1]. Raises `ValueError` for codes that are none, such as MASK, and another number of them."""
        if codes.shape[1] != self.length:
            raise ValueError(f"codes: expected {self.length} an image, got {codes.shape[1]}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            raise ValueError(f"codes: expected 0 to {self.num_codes - 1}, got {int(codes.min())} to {int(codes.max())}")
        columns_BED = self.means_KE[codes].movedim(1, 2)
        return F.fold(columns_BED, self.shape[1:], self.patch, stride=self.patch).clamp(-1, 1)

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads: its two files each whole or not at all."""
        with whole_file(folder / _WEIGHTS) as beside:
            save_tensors(beside, self.state_dict())
        named = {"architecture": ARCHITECTURE, "format_version": FORMAT_VERSION}
        write_json(folder / _CONFIG, {**named, "shape": list(self.shape), "patch": self.patch})

    @classmethod
    def load(cls, folder: Path) -> "PatchCodec":
        """What `save` wrote. Raises `ValueError` with the file's name for anything else."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        config = read_json(folder / _CONFIG)
        if (config.get("architecture"), config.get("format_version")) != (ARCHITECTURE, FORMAT_VERSION):
            found = f"{config.get('architecture')!r}, format {config.get('format_version')!r}"
            raise ValueError(f"{folder / _CONFIG}: expected {ARCHITECTURE!r}, format {FORMAT_VERSION}, found {found}")
        try:
            channels, height, width = config["shape"]
            means_KE = load_file(folder / _WEIGHTS)["means_KE"]
            if not bool(means_KE.isfinite().all()):
                raise ValueError("means_KE is not finite")
            return cls(means_KE, (channels, height, width), config["patch"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder}: a damaged patch codec: {type(error).__name__}: {error}") from error


def is_patch_codec(folder: Path) -> bool:
    """Whether `folder` holds what `PatchCodec.save` wrote."""
    return (folder / _CONFIG).is_file() and read_json(folder / _CONFIG).get("architecture") == ARCHITECTURE


def _shape(images: Tensor) -> Shape:
    channels, height, width = images.shape[1:]
    return channels, height, width
