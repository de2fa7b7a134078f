"""Settings of the CIFAR-10 domain: its own sections, and a run's settings made of them and of those that all domains share."""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, Ints, check, choice
from di4c_lm.domains.checks import check_lambda
from di4c_lm.domains.text.settings import TeacherConfig
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.unet import UnetConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.registry import OBJECTIVES, ObjectiveSettings
from di4c_lm.training.settings import OptimConfig, RunConfig, TrainConfig, WandbConfig, ZeroConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ChainConfig:
    """tauLDR's chain: `di4c_lm.processes.gaussian.GaussianChain` says what these are; the defaults are those for 256 levels."""

    rate_sigma: float = 6.0
    q_sigma: float = 512.0
    time_base: float = 3.0
    time_exponential: float = 100.0
    min_time: float = 0.01

    def __post_init__(self) -> None:
        for name in ("rate_sigma", "q_sigma", "time_base"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a value above 0")
        check(self.time_exponential > 1, "time_exponential", self.time_exponential, "a value above 1")
        check(0 <= self.min_time < 1, "min_time", self.min_time, "a value in [0, 1)")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageDataConfig:
    """Images. `digits` and `patches` are built in; else an .npz file, CIFAR-10's own folder, class folders, tars, or a hub name."""

    source: str = "digits"
    levels: int | None = None  # of the digits: 16, 17 or 256; absent: 17. All else has 256
    size: int | None = None  # rows and columns; absent: as the images are
    channels: Literal[1, 3] = 3
    crop: bool = False  # cut and resize what has another size or mode, in place of an error
    flip: bool = False  # mirror left to right in half of the epochs
    validation_share: float = 0.1  # where the source has no held-out part
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check(self.size is None or self.size >= 1, "size", self.size, "a value of at least 1")
        check(not self.crop or self.size is not None, "size", self.size, "a value of at least 1 where crop=true")
        check(0 < self.validation_share < 1, "validation_share", self.validation_share, "a value in (0, 1)")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ChainSamplerConfig:
    """How images are drawn: steps, each followed by `corrections`; the student's `last` calls are the teacher's (hybrid)."""

    step: Literal["analytic", "leaping"] = "analytic"
    end: Literal["argmax", "draw"] = "argmax"
    corrections: int = 0
    correction_size: float = 1.0
    correct_below: float = 1.0
    last: int = 0

    def __post_init__(self) -> None:
        check(self.corrections >= 0, "corrections", self.corrections, "a value of at least 0")
        check(self.correction_size > 0, "correction_size", self.correction_size, "a value above 0")
        check(0 <= self.correct_below <= 1, "correct_below", self.correct_below, "a value in [0, 1]")
        check(self.last >= 0, "last", self.last, "a value of at least 0")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageEvalConfig:
    """The closing report of a run; `di4c_lm.measure.images.report.ImageReportConfig` says what these are."""

    skip: bool = False
    steps: Ints = (2, 4, 8, 16)
    num_samples: int = 1000
    seeds: Ints = (0,)
    batch_size: int = 64
    features: str = "classifier"
    against: Literal["train", "validation"] = "train"
    bootstrap: int = 1000
    grid: int = 12


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CifarConfig:
    """One training run on images by tauLDR's chain."""

    domain: Literal["cifar10"] = "cifar10"
    run: RunConfig = field(default_factory=RunConfig)
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    model: UnetConfig = field(default_factory=UnetConfig)
    chain: ChainConfig = field(default_factory=ChainConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)  # `lambda` in YAML and on the command line
    objective: ObjectiveSettings = choice(OBJECTIVES, Likelihood(), "what is minimised")
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sampler: ChainSamplerConfig = field(default_factory=ChainSamplerConfig)
    eval: ImageEvalConfig = field(default_factory=ImageEvalConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        path, at = self.latent.path, self.latent.inject_at
        allowed = "classes, head, or token, the published way: in a U-Net a shift of each ResBlock"
        check(path in ("token", "head", "classes"), "lambda.path", path, allowed)
        check(at == 0, "lambda.inject_at", at, "0 for a U-Net")
        law = self.latent.law
        check(law != "gaussian", "lambda.law", law, "uniform, stratified or codebook for a U-Net")
        check_lambda(self.latent, self.objective)
