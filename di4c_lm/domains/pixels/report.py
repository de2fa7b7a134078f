"""What a finished run on pixels is measured by: its models, each with the run's own sampler."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from jaxtyping import Int64, UInt8
from numpy import ndarray

from di4c_lm.data.images.images import Split, images_of, to_bytes
from di4c_lm.domains import image_report
from di4c_lm.domains.domain import TEACHER, FinishedRun
from di4c_lm.domains.pixels.model import CifarModel, load_images, sampler_of
from di4c_lm.domains.pixels.settings import ChainSamplerConfig
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.measure.settings import device_of


@final
@dataclass(frozen=True, kw_only=True)
class CifarSampler:
    """A model as the report on images asks for it (`measure.images.samplers.ImageSampler`)."""

    name: str
    model: CifarModel
    settings: ChainSamplerConfig
    batch_size: int
    teacher: CifarModel | None = None

    @property
    def num_classes(self) -> int:
        """0: it takes no labels."""
        return 0

    @property
    def facts(self) -> Mapping[str, Any]:
        """How it draws."""
        chain = dataclasses.asdict(self.model.chain)
        return {"sampler": self.settings.step, "settings": dataclasses.asdict(self.settings), "chain": chain}

    def sample(
        self, num: int, steps: int, seed: int, labels: Int64[ndarray, " N"] | None
    ) -> tuple[UInt8[ndarray, "N H W C"], float]:
        """`num` images in `steps` times, and the network calls that each took."""
        how = sampler_of(self.settings, steps=steps, hybrid=self.teacher is not None)
        states_ND, nfe = self.model.sample(
            num, steps, seed=seed, batch_size=self.batch_size, teacher=self.teacher, **how
        )
        images = images_of(states_ND, self.model.shape)
        return to_bytes(images, self.model.chain.num_states), nfe


def samplers(run: FinishedRun, batch_size: int, device: str) -> list[CifarSampler]:
    """The models of a run by its `sampler`; a student's last calls are the teacher's where that asks for a hybrid."""
    models = {name: CifarModel.from_pretrained(path, device=device) for name, path in run.models.items()}
    chosen = run.settings.sampler
    helper = models.get(TEACHER) if chosen.last > 0 else None
    return [
        CifarSampler(
            name=name,
            model=model,
            settings=chosen,
            batch_size=batch_size,
            teacher=None if name == TEACHER else helper,
        )
        for name, model in models.items()
    ]


def report(run: FinishedRun, settings: ImageReportConfig | None = None, images: Split | None = None) -> str:
    """Measure the models of a run as `settings` say, or as the run's own do, and return the table."""
    chosen = settings or image_report.closing_settings(run.settings)
    images = images or load_images(run.settings.data, run.settings.train.seed)
    return image_report.report(run, samplers(run, chosen.batch_size, device_of(chosen.device)), images, chosen)
