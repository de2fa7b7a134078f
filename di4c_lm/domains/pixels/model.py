"""Images of ordered levels: tauLDR's chain, U-Nets, their checkpoints and images, and how they sample."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.data.images.images import Shape, Split
from di4c_lm.data.images.sources import Fit, load_split
from di4c_lm.domains.pixels.settings import PixelDataConfig, PixelSettings
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.trajectory import Decoding, Sampler, sample_keyed

_CHAIN = "chain"  # in a checkpoint's extra


@dataclass(frozen=True, kw_only=True)
class CifarModel:
    """A U-Net with the chain whose x_t it reads."""

    denoiser: Any  # a UNet, or a mixture on one
    chain: GaussianChain

    @property
    def process(self) -> GaussianChain:
        """The chain."""
        return self.chain

    @property
    def shape(self) -> Shape:
        """Rows, columns and channels of its images."""
        return self.denoiser.shape

    def save_pretrained(
        self, folder: Path | str, state: "Mapping[str, Tensor] | None" = None, *, backbone: str | None = None
    ) -> None:
        """Write `model.safetensors` and `config.json`; `state` holds the weights where the network's own are not meant.

        With `backbone`, the path of its teacher as seen from `folder`, a mixture over a frozen teacher is written without it.
        """
        chain = dataclasses.asdict(self.chain)
        del chain["num_states"]
        own.save(folder, self.denoiser, state=state, extra={_CHAIN: chain}, backbone=backbone)

    @classmethod
    def from_pretrained(cls, source: Path | str, *, device: torch.device | str = "cpu") -> "CifarModel":
        """What `save_pretrained` wrote, in eval mode. Raises `ValueError` as `read_checkpoint` does."""
        weights = read_checkpoint(source, "pixels")
        try:
            chain = GaussianChain(num_states=weights.sizes["num_states"], **weights.extra[_CHAIN])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: its chain is not one of ours: {error!r}") from error
        return cls(denoiser=weights.build(source).to(device), chain=chain)

    def sample(
        self,
        num_samples: int,
        steps: int,
        *,
        seed: int,
        batch_size: int = 64,
        sampler: Sampler | str = "ancestral",
        grid: str | Sequence[float] = "uniform",
        teacher: "CifarModel | None" = None,
        **decoding: Any,
    ) -> tuple[Int64[Tensor, "N D"], float]:
        """States of `num_samples` images, and the mean NFE. Image n depends on (seed, n) alone.

        `sampler` is an object or a name, `grid` a name of `make_grid` or times. `teacher` takes the last `hybrid_last` steps; `decoding`
        are fields of `Decoding`, `end` being argmax, as published, by default. Raises `ValueError` for sizes and settings that do not fit.
        """
        found = sample_keyed(
            self.denoiser,
            self.chain,
            (num_samples, self.denoiser.length),
            make_grid(grid, steps, floor=self.chain.min_time),
            seed=seed,
            batch_size=batch_size,
            sampler=sampler,
            decoding=Decoding(**{"end": "argmax", **decoding}),
            teacher=None if teacher is None else teacher.denoiser,
            device=next(self.denoiser.parameters()).device,
        )
        return found.x, found.nfe


def load_images(config: PixelDataConfig, seed: int) -> Split:
    """Training and validation images. Raises `ValueError` as `load_split` does, and for images of another size than `data.size`."""
    size = None if config.size is None else (config.size, config.size)
    split = load_split(
        config.source,
        seed=seed,
        validation_share=config.validation_share,
        levels=config.levels,
        fit=Fit(size=size, channels=config.channels, crop=config.crop),
        skip_bad=config.skip_bad,
    )
    if size is not None and split.train.shape[:2] != size:
        raise ValueError(
            f"{config.source}: expected images of {size[0]} x {size[1]} pixels, found {split.train.shape[:2]}"
        )
    return split


def load_teacher(source: Path | str, config: PixelSettings, shape: Shape, num_states: int) -> CifarModel:
    """The checkpoint at `source`: a folder of ours, or a `.pt` of tauLDR or Di4C, whose chain is the configured one.

    Raises `ValueError` as the readers do, and where its images are of another shape or number of levels than the data's.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        model = CifarModel.from_pretrained(path)
    else:
        known = {"weights": config.teacher.weights, "shape": shape, "num_states": num_states}
        weights = read_checkpoint(path, "pixels", **known)
        model = CifarModel(denoiser=weights.build(path), chain=dataclasses.replace(config.chain, num_states=num_states))
    found, wanted = (*model.shape, model.chain.num_states), (*shape, num_states)
    if found != wanted:
        raise ValueError(f"{path}: its images have (rows, columns, channels, levels) {found}, the data's {wanted}")
    return model
