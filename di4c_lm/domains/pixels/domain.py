"""Images of ordered levels: tauLDR's chain, U-Nets."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from torch import Tensor

from di4c_lm.checkpoints import own
from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.core.settings import check, to_dict
from di4c_lm.data.batches import first_sequences
from di4c_lm.data.images.images import ImageSource, Shape, Split, images_of, to_bytes
from di4c_lm.domains.domain import FinishedRun, Pretraining
from di4c_lm.domains.images import image_checks, load_images, report
from di4c_lm.domains.pixels.settings import PixelSettings
from di4c_lm.domains.probabilities import Probabilities
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.networks.unet import UNet
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.trajectory import Decoding, Sampler, sample_keyed
from di4c_lm.training.distributed import World

_CHAIN = "chain"  # in a checkpoint's extra


@dataclass(frozen=True, kw_only=True)
class CifarModel(Probabilities):
    """A U-Net with the chain whose x_t it reads."""

    denoiser: Any  # a UNet, or a mixture on one
    chain: GaussianChain
    num_classes: ClassVar[int] = 0  # that can be asked for
    usual_sampler: ClassVar[str] = "ancestral"

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
        """Write `model.safetensors` and `config.json`; see `Model`."""
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

    def sample_states(
        self,
        num_samples: int,
        steps: int,
        *,
        seed: int,
        batch_size: int = 64,
        sampler: Sampler | str = usual_sampler,
        grid: str | Sequence[float] = "uniform",
        teacher: "CifarModel | None" = None,
        on_step: Callable[[Int64[Tensor, "B D"]], None] | None = None,
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
            on_step=on_step,
        )
        return found.x, found.nfe

    def sample(
        self, num_samples: int = 1, *, steps: int = 8, seed: int = 0, labels: None = None, **how: Any
    ) -> UInt8[ndarray, "N H W C"]:
        """Images as bytes.

        Args:
            num_samples: how many images.
            steps: network calls for each, but for samplers that count them otherwise.
            seed: image n depends on it and on n alone.
            labels: to be left out, since this model knows no classes.
            how: `sampler`, `grid`, `teacher` and fields of `Decoding`, as `sample_states` takes them.

        Returns:
            (N, rows, columns, channels), 0 to 255.

        Raises:
            ValueError: sizes or settings that do not fit, or classes.
        """
        check(labels is None, "labels", labels, "left out: this model knows no classes")
        return self.images(num_samples, steps, seed, **how)[0]

    def images(
        self, num: int, steps: int, seed: int, labels: None = None, **how: Any
    ) -> tuple[UInt8[ndarray, "N H W C"], float]:
        """Images and the mean NFE, as reports on images ask for them; `how` goes to `sample_states`."""
        states_ND, nfe = self.sample_states(num, steps, seed=seed, **how)
        return self.state_images(states_ND), nfe

    def state_images(self, states: Int64[Tensor, "N D"]) -> UInt8[ndarray, "N H W C"]:
        """The images of states, those along the way too."""
        return to_bytes(images_of(states, self.shape), self.chain.num_states)

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of it beside its sampler."""
        return {"chain": to_dict(self.chain)}


@dataclass(frozen=True, kw_only=True)
class PixelData:
    """Images to train on and a validation set; with `flip` those to train on are mirrored in half of the epochs."""

    images: Split
    flip: bool

    @property
    def fingerprint(self) -> str:
        """Of pixels, levels and mirroring."""
        return f"{self.images.train.fingerprint} {self.flip}"

    def source(self, seed: int) -> ImageSource:
        """The training images."""
        return ImageSource(self.images.train, seed, flip=self.flip)

    def first_sequences(self, seed: int) -> Int64[Tensor, "N D"]:
        """Of the training images."""
        return first_sequences(self.source(seed), math.prod(self.images.train.shape))

    def save(self, folder: Path) -> None:
        """Nothing: the images are read again."""


class PixelDomain:
    """See `Domain`."""

    name = "cifar10"
    settings = PixelSettings
    model = CifarModel
    pretraining = Pretraining(objective=Denoising(), sections=("model", "chain"))

    def checks(self, settings: PixelSettings) -> dict[str, Callable[[], object]]:
        """See `Domain.checks`."""
        return image_checks(settings, "pixels")

    def data(self, settings: PixelSettings, world: World, cache_dir: Path) -> PixelData:
        """All images in memory."""
        return PixelData(images=load_images(settings), flip=settings.data.flip)

    def network(self, settings: PixelSettings, data: PixelData) -> UNet:
        """A U-Net of the images' shape."""
        images = data.images.train
        return UNet(settings.model, shape=images.shape, num_states=images.levels)

    def read(self, path: Path | str, settings: PixelSettings, data: PixelData) -> CifarModel:
        """A folder of ours, or a `.pt` of tauLDR or Di4C, whose chain is the configured one."""
        images, path = data.images.train, Path(path).expanduser()
        if path.is_dir():
            model = CifarModel.from_pretrained(path)
        else:
            known = {"weights": settings.teacher.weights, "shape": images.shape, "num_states": images.levels}
            model = self.wrap(read_checkpoint(path, "pixels", **known).build(path), settings, data)
        found, wanted = (*model.shape, model.chain.num_states), (*images.shape, images.levels)
        if found != wanted:
            raise ValueError(f"{path}: its images have (rows, columns, channels, levels) {found}, the data's {wanted}")
        return model

    def wrap(self, network: Any, settings: PixelSettings, data: PixelData) -> CifarModel:
        """With the configured chain."""
        chain = dataclasses.replace(settings.chain, num_states=data.images.train.levels)
        return CifarModel(denoiser=network, chain=chain)

    def report(self, run: FinishedRun, settings: ImageReportConfig | None = None, data: PixelData | None = None) -> str:
        """FID and its kin of the run's models."""
        return report(run, settings, None if data is None else data.images)


DOMAIN = PixelDomain()
