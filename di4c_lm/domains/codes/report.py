"""What a finished run on images as codes is measured by: its models, which sample images of asked classes by confidence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray

from di4c_lm.core.settings import to_dict
from di4c_lm.data.images.images import Split
from di4c_lm.domains import image_report
from di4c_lm.domains.codes.model import CodeModel, fingerprint, load_images
from di4c_lm.domains.domain import FinishedRun
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.measure.settings import device_of
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.registry import make_sampler
from di4c_lm.samplers.trajectory import Decoding, Sampler, name_of


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CodeDrawer:
    """A model that draws images of asked classes, as reports on images call it."""

    name: str
    model: CodeModel
    sampler: Sampler = field(default_factory=Confidence)
    decoding: Decoding = field(default_factory=Decoding)
    batch_size: int = 64

    @property
    def num_classes(self) -> int:
        """C."""
        return self.model.denoiser.num_classes

    @property
    def facts(self) -> Mapping[str, Any]:
        """What shapes the images, JSON-ready."""
        return {
            "sampler": name_of(self.sampler),
            "settings": to_dict(self.sampler) | to_dict(self.decoding),
            "schedule": self.model.schedule,
            "weights": fingerprint(self.model.denoiser),
            "vqgan": fingerprint(self.model.vqgan),
        }

    def sample(
        self, num: int, steps: int, seed: int, labels: Int64[ndarray, " N"] | None
    ) -> tuple[UInt8[ndarray, "N H W C"], float]:
        """`num` images in `steps` steps, the same for the same seed and labels, and the network calls that each took."""
        codes_ND, nfe = self.model.sample(
            None if labels is None else torch.from_numpy(labels),
            steps,
            seed=seed,
            num_samples=num,
            batch_size=self.batch_size,
            sampler=self.sampler,
            **to_dict(self.decoding),
        )
        return self.model.decode(codes_ND), nfe


def samplers(run: FinishedRun, batch_size: int, device: str) -> list[CodeDrawer]:
    """The models of a run with the sampler that `eval` describes."""
    told = run.settings.eval
    confidence = {"choice_temperature": told.choice_temperature, "counts": told.counts}
    how = {
        "sampler": make_sampler("confidence", confidence),
        "decoding": Decoding(temperature=told.temperature, guidance=told.guidance),
        "batch_size": batch_size,
    }
    models = {name: CodeModel.from_pretrained(path, device=device) for name, path in run.models.items()}
    return [CodeDrawer(name=name, model=model, **how) for name, model in models.items()]


def report(run: FinishedRun, settings: ImageReportConfig | None = None, images: Split | None = None) -> str:
    """Measure the models of a run as `settings` say, or as the run's own do, and return the table.

    Raises `ValueError` where of the images only the codes are at hand.
    """
    chosen = settings or image_report.closing_settings(run.settings)
    images = images or load_images(run.settings)
    return image_report.report(run, samplers(run, chosen.batch_size, device_of(chosen.device)), images, chosen)
