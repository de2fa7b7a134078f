"""Settings of a run on pixels by tauLDR's chain, such as CIFAR-10's."""

from collections.abc import Mapping
from typing import Any, ClassVar

from di4c_lm.core.settings import check, choice, kind_of, section, setting
from di4c_lm.domains.settings import ImageDataConfig, ImageEvalConfig, RunSettings, closing
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.mixtures.base import MixtureSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.registry import MIXTURES
from di4c_lm.networks.unet import UnetConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.masked import Times
from di4c_lm.samplers.trajectory import Decoding
from di4c_lm.training.settings import OptimConfig, TrainConfig


@section
class PixelDataConfig(ImageDataConfig):
    """Images: built-in ones, or those of a path."""

    levels: int | None = setting(
        None, "grey levels of the built-in digits: 16, 17 or 256; null: 17. Other images have 256"
    )
    flip: bool = setting(False, "mirror images left to right in half of the epochs")

    def unused(self) -> dict[str, str]:
        """Those of any images, and levels but for the digits."""
        return super().unused() | ({} if self.kind == "digits" else {"levels": f"where data.kind={self.kind}"})


@section
class PixelSettings(RunSettings):
    """A run on pixels by tauLDR's chain: images, a teacher, a student, a report."""

    DEFAULT_RECIPE: ClassVar[str] = "sequential"
    PROCESS: ClassVar[type] = GaussianChain
    OLD_KEYS: ClassVar[Mapping[str, str]] = {
        **RunSettings.OLD_KEYS,
        "data.source": "data",
        "sampler.step=analytic": "sampler=ancestral",
        "sampler.step=leaping": "sampler=tau_leaping",
        "sampler.step": "sampler",
        "sampler.correction_size": "sampler.size",
        "sampler.correct_below": "sampler.below",
        "sampler.end=draw": "decoding.end=sample",
        "sampler.end": "decoding.end",
        "sampler.last": "decoding.hybrid_last",
    }

    data: PixelDataConfig = setting(PixelDataConfig())
    model: UnetConfig = setting(UnetConfig(width=32, multipliers=(1, 2), res_blocks=1, dropout=0.0))
    chain: GaussianChain = setting(GaussianChain(rate_sigma=1.0, q_sigma=34.0, time_base=0.7))
    mixture: MixtureSettings = choice(
        MIXTURES, ClassChainSettings(codebook_size=17, relations=4), "what λ is, and how it enters the network"
    )
    objective: Any = choice(
        OBJECTIVES,
        Likelihood(times=Times(grid_share=0.8, grid_steps=(1, 3, 7, 15))),
        "what training minimises",
    )
    optim: OptimConfig = setting(OptimConfig(lr=1e-2, schedule="cosine", ema_decay=0.99))
    train: TrainConfig = setting(TrainConfig(steps=800, micro_batch_size=16, save_every=200))
    decoding: Decoding = setting(Decoding(end="argmax"), identity=False)
    eval: ImageEvalConfig = setting(ImageEvalConfig(num_samples=480, batch_size=160), identity=False)

    def __post_init__(self) -> None:
        objective, kind = kind_of(OBJECTIVES, self.objective), kind_of(MIXTURES, self.mixture)
        check(
            objective not in ("sdtt", "mdlm"),
            "objective",
            objective,
            "likelihood, di4c or denoising on pixels, whose noise is no mask",
        )
        check(kind != "adaln", "mixture", kind, "token, codes, class_chain or sequential for a U-Net")
        whole = self.zero.teacher == "replicated"
        check(whole, "zero.teacher", self.zero.teacher, "replicated for a U-Net, which has no transformer blocks")
        at, distribution = getattr(self.mixture, "inject_at", 0), getattr(self.mixture, "distribution", "uniform")
        check(at == 0, "mixture.inject_at", at, "0 for a U-Net")
        allowed = "uniform, stratified or codebook for a U-Net"
        check(distribution != "gaussian", "mixture.distribution", distribution, allowed)
        super().__post_init__()
        closing(self, ImageReportConfig)

    def unused(self) -> dict[str, str]:
        """Those of any run, and the levels, of which the data has as many as it has."""
        return {**super().unused(), "chain.num_states": "where the data says how many levels there are"}
