"""Settings of a run on pixels by tauLDR's chain, such as CIFAR-10's."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from di4c_lm.core.settings import at_least, check, choice, kind_of, positive, section, setting
from di4c_lm.domains.settings import ImageDataConfig, ImageEvalConfig, RunSettings
from di4c_lm.mixtures.base import MixtureSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.registry import MIXTURES
from di4c_lm.networks.unet import UnetConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.processes.times import Times
from di4c_lm.training.settings import OptimConfig, TrainConfig


@section
class ChainConfig:
    """tauLDR's chain, see `di4c_lm.processes.gaussian.GaussianChain`; the published one for 256 levels where nothing is said."""

    rate_sigma: float = setting(6.0, "how far a level jumps")
    q_sigma: float = setting(512.0, "width of the distribution at t = 1")
    time_base: float = setting(3.0, "how fast noise comes in")
    time_exponential: float = setting(100.0, "and how much faster at the end")
    min_time: float = setting(0.01, "the lowest time")

    def __post_init__(self) -> None:
        positive(self, "rate_sigma", "q_sigma", "time_base")
        check(self.time_exponential > 1, "time_exponential", self.time_exponential, "above 1")
        check(0 <= self.min_time < 1, "min_time", self.min_time, "in [0, 1)")


@section
class PixelDataConfig(ImageDataConfig):
    """Images: built-in ones, or those of a path."""

    levels: int | None = setting(None, "of the digits: 16, 17 or 256; null: 17. All else has 256")
    flip: bool = setting(False, "mirror left to right in half of the epochs")

    def unused(self) -> dict[str, str]:
        """Those of any images, and levels but for the digits."""
        return super().unused() | ({} if self.kind == "digits" else {"levels": f"where data.kind={self.kind}"})


@section
class ChainSamplerConfig:
    """How images are sampled: steps, each followed by corrections."""

    step: Literal["analytic", "leaping"] = setting("analytic", "leaping: tau-leaping")
    end: Literal["argmax", "draw"] = setting("argmax", "what is taken of the last prediction")
    corrections: int = setting(0, "after each step")
    correction_size: float = setting(1.0, "times the step's")
    correct_below: float = setting(1.0, "times at which there are corrections")
    last: int = setting(0, "the student's last calls that are the teacher's (hybrid)")

    def __post_init__(self) -> None:
        at_least(self, 0, "corrections", "last")
        positive(self, "correction_size")
        check(0 <= self.correct_below <= 1, "correct_below", self.correct_below, "in [0, 1]")


@section
class PixelSettings(RunSettings):
    """A run on pixels by tauLDR's chain: images, a teacher, a student, a report."""

    OLD_KEYS: ClassVar[Mapping[str, str]] = {**RunSettings.OLD_KEYS, "data.source": "data"}

    data: PixelDataConfig = setting(PixelDataConfig())
    model: UnetConfig = setting(UnetConfig(width=32, multipliers=(1, 2), res_blocks=1, dropout=0.0))
    chain: ChainConfig = setting(ChainConfig(rate_sigma=1.0, q_sigma=34.0, time_base=0.7))
    mixture: MixtureSettings = choice(MIXTURES, ClassChainSettings(codebook_size=17, relations=4), "λ of the student")
    objective: Any = choice(
        OBJECTIVES,
        Likelihood(times=Times(grid_share=0.8, grid_steps=(1, 3, 7, 15))),
        "what is minimised",
    )
    optim: OptimConfig = setting(OptimConfig(lr=1e-2, schedule="cosine", ema_decay=0.99))
    train: TrainConfig = setting(TrainConfig(steps=800, micro_batch_size=16, save_every=200))
    sampler: ChainSamplerConfig = setting(ChainSamplerConfig(), identity=False)
    eval: ImageEvalConfig = setting(ImageEvalConfig(num_samples=480, batch_size=160), identity=False)

    def __post_init__(self) -> None:
        objective, kind = kind_of(OBJECTIVES, self.objective), kind_of(MIXTURES, self.mixture)
        check(
            objective not in ("sdtt", "mdlm"),
            "objective",
            objective,
            "likelihood, di4c or denoising on pixels, whose noise is no mask",
        )
        check(kind != "adaln", "mixture", kind, "token, codes or class_chain for a U-Net")
        at, distribution = getattr(self.mixture, "inject_at", 0), getattr(self.mixture, "distribution", "uniform")
        check(at == 0, "mixture.inject_at", at, "0 for a U-Net")
        allowed = "uniform, stratified or codebook for a U-Net"
        check(distribution != "gaussian", "mixture.distribution", distribution, allowed)
        super().__post_init__()
