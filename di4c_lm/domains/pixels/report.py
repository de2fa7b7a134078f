"""What a finished run on pixels is measured by: its models, each with the run's own sampler."""

import dataclasses

from jaxtyping import UInt8
from numpy import ndarray

from di4c_lm.data.images.images import Split, images_of, to_bytes
from di4c_lm.domains import image_report
from di4c_lm.domains.domain import TEACHER, FinishedRun
from di4c_lm.domains.pixels.model import CifarModel, load_images, sampler_of
from di4c_lm.domains.pixels.settings import ChainSamplerConfig
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.measure.images.samplers import ImageSampler
from di4c_lm.measure.settings import device_of


def sampler(
    name: str, model: CifarModel, settings: ChainSamplerConfig, batch_size: int, teacher: CifarModel | None = None
) -> ImageSampler:
    """A model with a sampler, as the report on images calls it; a hybrid's last calls are its `teacher`'s."""

    def sample(num: int, steps: int, seed: int, labels: None) -> tuple[UInt8[ndarray, "N H W C"], float]:
        how = sampler_of(settings, steps=steps, hybrid=teacher is not None)
        states_ND, nfe = model.sample(num, steps, seed=seed, batch_size=batch_size, teacher=teacher, **how)
        return to_bytes(images_of(states_ND, model.shape), model.chain.num_states), nfe

    chain = dataclasses.asdict(model.chain)
    facts = {"sampler": settings.step, "settings": dataclasses.asdict(settings), "chain": chain}
    return ImageSampler(name=name, sample=sample, facts=facts)


def samplers(run: FinishedRun, batch_size: int, device: str) -> list[ImageSampler]:
    """The models of a run by its `sampler`; a student's last calls are the teacher's where that asks for a hybrid."""
    models = {name: CifarModel.from_pretrained(path, device=device) for name, path in run.models.items()}
    chosen = run.settings.sampler
    helper = models.get(TEACHER) if chosen.last > 0 else None
    return [
        sampler(name, model, chosen, batch_size, None if name == TEACHER else helper) for name, model in models.items()
    ]


def report(run: FinishedRun, settings: ImageReportConfig | None = None, images: Split | None = None) -> str:
    """Measure the models of a run as `settings` say, or as the run's own do, and return the table."""
    chosen = settings or image_report.closing_settings(run.settings)
    images = images or load_images(run.settings.data, run.settings.train.seed)
    return image_report.report(run, samplers(run, chosen.batch_size, device_of(chosen.device)), images, chosen)
