"""What a finished run on pixels is measured by: its models, each with the run's own sampler."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from di4c_lm.core.settings import to_dict
from di4c_lm.data.images.images import Split, images_of, to_bytes
from di4c_lm.domains import image_report
from di4c_lm.domains.domain import FinishedRun, sampling, sampling_facts
from di4c_lm.domains.pixels.model import CifarModel, load_images
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.measure.images.samplers import ImageSampler
from di4c_lm.measure.settings import device_of


def image_sampler(
    name: str, model: CifarModel, *, batch_size: int = 64, facts: Mapping[str, Any] | None = None, **how: Any
) -> ImageSampler:
    """A model with a sampler, as the report on images calls it; `how` goes to the model's `sample`."""

    def sample(num: int, steps: int, seed: int, labels: None) -> tuple[UInt8[ndarray, "N H W C"], float]:
        states_ND, nfe = model.sample(num, steps, seed=seed, batch_size=batch_size, **how)
        return to_bytes(images_of(states_ND, model.shape), model.chain.num_states), nfe

    return ImageSampler(name=name, sample=sample, facts={**(facts or {}), "chain": to_dict(model.chain)})


def samplers(run: FinishedRun, batch_size: int, device: str) -> list[ImageSampler]:
    """The models of a run by its `sampler` and `decoding`."""
    models = {name: CifarModel.from_pretrained(path, device=device) for name, path in run.models.items()}
    shared = {"batch_size": batch_size, "facts": sampling_facts(run.settings)}
    return [
        image_sampler(name, model, **shared, **sampling(run.settings, name, models)) for name, model in models.items()
    ]


def report(run: FinishedRun, settings: ImageReportConfig | None = None, images: Split | None = None) -> str:
    """Measure the models of a run as `settings` say, or as the run's own do, and return the table."""
    chosen = settings or image_report.closing_settings(run.settings)
    images = images or load_images(run.settings.data, run.settings.train.seed)
    return image_report.report(run, samplers(run, chosen.batch_size, device_of(chosen.device)), images, chosen)
