"""Settings of the ImageNet domain: the masked transformer on codes, the VQGAN that makes them, and a run."""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, Ints, check, choice
from di4c_lm.domains.checks import check_lambda
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.maskgit import MaskGitConfig
from di4c_lm.networks.vqgan import VqganConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.registry import OBJECTIVES, ObjectiveSettings
from di4c_lm.training.settings import OptimConfig, PretrainConfig, RunConfig, TrainConfig, WandbConfig, ZeroConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CodesConfig:
    """The images: `path` is digits or patches (built in), a file, folder or hub name of images, or a folder of tools/encode_images.py."""

    path: str = "digits"
    size: int = 0  # pixels along one side; 0: as the images are
    channels: Literal[1, 3] = 3
    crop: bool = False  # cut and resize images of another size or mode, which are an error otherwise
    validation_share: float = 0.1
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check(bool(self.path), "path", self.path, "digits, patches, a path or a hub name")
        check(self.size >= 0, "size", self.size, "a value of at least 0")
        check(not self.crop or self.size > 0, "size", self.size, "a value above 0 where crop=true")
        check(0 < self.validation_share < 1, "validation_share", self.validation_share, "a value in (0, 1)")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VqganSource:
    """A VQGAN: `path` names a folder, or Taming's `last.ckpt` with its YAML beside it; absent, one is trained on the images and cached."""

    path: str | None = None
    model: VqganConfig = field(default_factory=VqganConfig)
    usage: float = 0.1  # weight of how equally the codes are used
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        check(self.usage >= 0, "usage", self.usage, "a value of at least 0")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MaskGitSource:
    """A teacher: `path` names a folder or a `.pth`; absent, one is trained on the codes and cached.

    `num_heads` and `num_codes` serve where a `.pth` states neither and they are not the published ones.
    """

    path: str | None = None
    num_heads: int | None = None
    num_codes: int | None = None
    label_drop: float = 0.1  # share of the images whose class is hidden, for guidance
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        check(0 <= self.label_drop <= 1, "label_drop", self.label_drop, "a value in [0, 1]")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImagenetEvalConfig:
    """The closing report, as `di4c_lm.measure.images.report.ImageReportConfig` says, and how images are drawn: by confidence."""

    skip: bool = False
    steps: Ints = (2, 4, 8, 16)
    num_samples: int = 1536
    seeds: Ints = (0, 1, 2)
    batch_size: int = 64
    features: str = "classifier"
    against: Literal["train", "validation"] = "train"
    bootstrap: int = 1000
    grid: int = 12
    guidance: float = 0.0
    choice_temperature: float = 4.5
    temperature: float = 1.0
    counts: Literal["expected", "published"] = "expected"

    def __post_init__(self) -> None:
        check(self.guidance >= 0, "guidance", self.guidance, "a value of at least 0")
        check(self.choice_temperature >= 0, "choice_temperature", self.choice_temperature, "a value of at least 0")
        check(self.temperature > 0, "temperature", self.temperature, "a value above 0")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImagenetConfig:
    """One run: a VQGAN, codes, a teacher, a student, a report."""

    domain: Literal["imagenet"] = "imagenet"
    run: RunConfig = field(default_factory=RunConfig)
    data: CodesConfig = field(default_factory=CodesConfig)
    vqgan: VqganSource = field(default_factory=VqganSource)
    model: MaskGitConfig = field(default_factory=MaskGitConfig)
    schedule: Literal["root", "linear", "square", "cosine", "arccos"] = "arccos"
    latent: LatentConfig = field(default_factory=LatentConfig)  # `lambda` in YAML and on the command line
    objective: ObjectiveSettings = choice(OBJECTIVES, Likelihood(), "what is minimised")
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    teacher: MaskGitSource = field(default_factory=MaskGitSource)
    eval: ImagenetEvalConfig = field(default_factory=ImagenetEvalConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        check_lambda(self.latent, self.objective)
        blocks, at = self.model.num_blocks, self.latent.inject_at
        own_shape = self.teacher.path is None  # else the checkpoint says how many blocks there are
        check(
            not own_shape or -blocks <= at < blocks, "lambda.inject_at", at, f"a block below model.num_blocks={blocks}"
        )
