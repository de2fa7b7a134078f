"""Images of ordered levels: tauLDR's chain, U-Nets."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor

from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.data.batches import first_sequences
from di4c_lm.data.images.images import ImageSource, Split
from di4c_lm.domains.domain import FinishedRun, Pretraining
from di4c_lm.domains.images import closing_settings, load_images, report
from di4c_lm.domains.pixels.model import CifarModel
from di4c_lm.domains.pixels.settings import PixelSettings
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.networks.unet import UNet
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.training.distributed import World


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

    def data(self, settings: PixelSettings, world: World, cache_dir: Path) -> PixelData:
        """All images in memory; impossible settings of the report are refused before."""
        closing_settings(settings)
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
