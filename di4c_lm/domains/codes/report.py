"""What a finished run on images as codes is measured by: its models, which sample images of asked classes by confidence."""

import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray

from di4c_lm.core.settings import to_dict
from di4c_lm.data.images.images import Split
from di4c_lm.domains import image_report
from di4c_lm.domains.codes.model import CodeModel, fingerprint, load_images
from di4c_lm.domains.domain import FinishedRun
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.measure.images.samplers import ImageSampler
from di4c_lm.measure.settings import device_of
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.registry import make_sampler
from di4c_lm.samplers.trajectory import Decoding, Sampler, name_of


def sampler_of(
    name: str,
    model: CodeModel,
    sampler: Sampler | None = None,
    decoding: Decoding | None = None,
    batch_size: int = 64,
) -> ImageSampler:
    """A model that samples images of asked classes, as reports on images call it; by default by confidence."""
    sampler, decoding = sampler or Confidence(), decoding or Decoding()

    def sample(
        num: int, steps: int, seed: int, labels: Int64[ndarray, " N"] | None
    ) -> tuple[UInt8[ndarray, "N H W C"], float]:
        codes_ND, nfe = model.sample(
            None if labels is None else torch.from_numpy(labels),
            steps,
            seed=seed,
            num_samples=num,
            batch_size=batch_size,
            sampler=sampler,
            **to_dict(decoding),
        )
        return model.decode(codes_ND), nfe

    facts = {
        "sampler": name_of(sampler),
        "settings": to_dict(sampler) | to_dict(decoding),
        "schedule": model.schedule,
        "weights": fingerprint(model.denoiser),
        "vqgan": fingerprint(model.vqgan),
    }
    return ImageSampler(name=name, sample=sample, facts=facts, num_classes=model.denoiser.num_classes)


def samplers(run: FinishedRun, batch_size: int, device: str) -> list[ImageSampler]:
    """The models of a run with the sampler that `eval` describes."""
    told = run.settings.eval
    confidence = {"choice_temperature": told.choice_temperature, "counts": told.counts}
    how = {
        "sampler": make_sampler("confidence", confidence),
        "decoding": Decoding(temperature=told.temperature, guidance=told.guidance),
        "batch_size": batch_size,
    }
    models = {name: CodeModel.from_pretrained(path, device=device) for name, path in run.models.items()}
    return [sampler_of(name, model, **how) for name, model in models.items()]


def report(run: FinishedRun, settings: ImageReportConfig | None = None, images: Split | None = None) -> str:
    """Measure the models of a run as `settings` say, or as the run's own do, and return the table.

    Raises `ValueError` where of the images only the codes are at hand.
    """
    chosen = settings or image_report.closing_settings(run.settings)
    images = images or load_images(run.settings)
    return image_report.report(run, samplers(run, chosen.batch_size, device_of(chosen.device)), images, chosen)
