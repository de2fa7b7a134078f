"""What a finished run on images as codes is measured by: its models, which sample images of asked classes."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray

from di4c_lm.data.images.images import Split
from di4c_lm.domains import image_report
from di4c_lm.domains.codes.model import CodeModel, fingerprint, load_images
from di4c_lm.domains.domain import FinishedRun, sampling, sampling_facts
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.measure.images.samplers import ImageSampler
from di4c_lm.measure.settings import device_of


def image_sampler(
    name: str, model: CodeModel, *, batch_size: int = 64, facts: Mapping[str, Any] | None = None, **how: Any
) -> ImageSampler:
    """A model that samples images of asked classes, as the report on images calls it; `how` goes to the model's `sample`."""

    def sample(
        num: int, steps: int, seed: int, labels: Int64[ndarray, " N"] | None
    ) -> tuple[UInt8[ndarray, "N H W C"], float]:
        classes = None if labels is None else torch.from_numpy(labels)
        codes_ND, nfe = model.sample(classes, steps, seed=seed, num_samples=num, batch_size=batch_size, **how)
        return model.decode(codes_ND), nfe

    own = {
        "schedule": model.schedule,
        "weights": fingerprint(model.denoiser),
        "codec": fingerprint(model.codec),
    }
    return ImageSampler(
        name=name, sample=sample, facts={**(facts or {}), **own}, num_classes=model.denoiser.num_classes
    )


def samplers(run: FinishedRun, batch_size: int, device: str) -> list[ImageSampler]:
    """The models of a run by its `sampler` and `decoding`."""
    models = {name: CodeModel.from_pretrained(path, device=device) for name, path in run.models.items()}
    shared = {"batch_size": batch_size, "facts": sampling_facts(run.settings)}
    return [
        image_sampler(name, model, **shared, **sampling(run.settings, name, models)) for name, model in models.items()
    ]


def report(run: FinishedRun, settings: ImageReportConfig | None = None, images: Split | None = None) -> str:
    """Measure the models of a run as `settings` say, or as the run's own do, and return the table.

    Raises `ValueError` where of the images only the codes are at hand.
    """
    chosen = settings or image_report.closing_settings(run.settings)
    images = images or load_images(run.settings)
    return image_report.report(run, samplers(run, chosen.batch_size, device_of(chosen.device)), images, chosen)
