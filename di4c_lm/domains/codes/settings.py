"""Settings of a run on the codes of images, such as ImageNet's: what makes the codes, and MaskGIT's transformer on them."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from di4c_lm.core.settings import check, choice, section, setting, unit
from di4c_lm.data.images.patch_codec import PatchCodecConfig
from di4c_lm.domains.settings import (
    ImageDataConfig,
    ImageEvalConfig,
    RunSettings,
    TeacherConfig,
    TeacherPretrainConfig,
    closing,
)
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.mixtures.base import MixtureSettings
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.mixtures.registry import MIXTURES
from di4c_lm.networks.maskgit import MaskGitConfig
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.objectives.teacher_step import TeacherStep
from di4c_lm.processes.masked import Times
from di4c_lm.training.settings import OptimConfig, TrainConfig


@section
class VqganSource:
    """The VQGAN that makes the codes."""

    path: str | None = setting(
        None, "a folder, or Taming's last.ckpt with its YAML beside it; null: `codec` makes them"
    )


@section
class CodeTeacherConfig(TeacherConfig):
    """The teacher: the network that is distilled."""

    num_heads: int | None = setting(None, "attention heads of the teacher, where its .pth file does not say")
    num_codes: int | None = setting(None, "codes of the teacher, where its .pth file does not say")
    label_drop: float = setting(0.1, "share of images whose class is hidden in training, which guidance needs")

    def __post_init__(self) -> None:
        super().__post_init__()
        unit(self, "label_drop")

    def unused(self) -> dict[str, str]:
        """Those of any teacher, and what is said of a file, or of training."""
        names = ("label_drop",) if self.kind == "pretrained" else ("num_heads", "num_codes")
        return super().unused() | dict.fromkeys(names, f"where teacher.kind={self.kind}")


@section
class CodeSettings(RunSettings):
    """A run on the codes of images: images, their codes, a teacher, a student, a report."""

    DEFAULT_RECIPE: ClassVar[str] = "sequential"
    HAS_CLASSES: ClassVar[bool] = True
    usual_sampler: ClassVar[str] = "confidence"
    OLD_KEYS: ClassVar[Mapping[str, str]] = {
        **RunSettings.OLD_KEYS,
        "eval.guidance": "decoding.guidance",
        "eval.temperature": "decoding.temperature",
        "eval.choice_temperature": "sampler.choice_temperature",
        "eval.counts": "sampler.counts",
        "vqgan.model.n_embed": "codec.num_codes",
        "vqgan.pretrain.seed": "codec.seed",
        **dict.fromkeys(
            ("vqgan.model", "vqgan.pretrain", "vqgan.usage"), "gone (codec makes the codes, or vqgan.path)"
        ),
    }

    data: ImageDataConfig = setting(ImageDataConfig(channels=1))
    vqgan: VqganSource = setting(VqganSource())
    codec: PatchCodecConfig = setting(PatchCodecConfig())
    model: MaskGitConfig = setting(MaskGitConfig(hidden_size=96, num_blocks=4, num_heads=4, mlp_size=384, dropout=0.0))
    schedule: Literal["root", "linear", "square", "cosine", "arccos"] = setting(
        "arccos", "how the share of masked positions falls with time"
    )
    mixture: MixtureSettings = choice(
        MIXTURES, CodesSettings(window=1, init_scale=1.0), "what λ is, and how it enters the network"
    )
    objective: Any = choice(
        OBJECTIVES,
        Di4C(
            consistency_samples=1,
            alpha="constant",
            alpha_scale=1.0,
            marginal_weight=4.0,
            consistency_weight=0.0,
            delta=0.05,
            label_drop=0.1,
            times=Times(grid_share=0.8, grid_steps=(1, 2, 4)),
            teacher_step=TeacherStep(distribution="fraction", size=0.5),
        ),
        "what training minimises",
    )
    optim: OptimConfig = setting(OptimConfig(lr=3e-4, mixture_lr_scale=30.0, schedule="cosine", ema_decay=0.99))
    train: TrainConfig = setting(TrainConfig(steps=800, micro_batch_size=32, save_every=200))
    teacher: CodeTeacherConfig = setting(CodeTeacherConfig(pretrain=TeacherPretrainConfig(batch_size=64, times="iid")))
    eval: ImageEvalConfig = setting(
        ImageEvalConfig(steps=(1, 2, 4, 8, 16), num_samples=1536, seeds=(0, 1, 2), batch_size=256), identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        bound = isinstance(self.objective, Mdlm) and self.schedule != "linear"
        closing(self, ImageReportConfig)
        check(not bound, "objective", "mdlm", f"denoising, or schedule linear, where schedule={self.schedule}")

    def unused(self) -> dict[str, str]:
        """Those of any run, and the codec where a VQGAN is given."""
        return super().unused() | ({} if self.vqgan.path is None else {"codec": "where vqgan.path is given"})
