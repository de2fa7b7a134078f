"""What the settings of a run have in all domains."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from di4c_lm.core.settings import (
    Ints,
    Rounds,
    at_least,
    build,
    check,
    choice,
    fields,
    kind_of,
    section,
    setting,
    to_dict,
)
from di4c_lm.mixtures.base import MixtureSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.registry import MIXTURES
from di4c_lm.networks.lora import LoraSettings
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.registry import OBJECTIVES
from di4c_lm.objectives.registry import OLD_KEYS as OLD_OBJECTIVE_KEYS
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.trajectory import Decoding, check_process
from di4c_lm.samplers.usual import WITH_USUAL, Usual, resolved
from di4c_lm.training.settings import (
    OptimConfig,
    PretrainConfig,
    RunConfig,
    TensorboardConfig,
    TrainConfig,
    WandbConfig,
    ZeroConfig,
)

T = TypeVar("T")


@section
class TeacherPretrainConfig(PretrainConfig):
    """How the run trains its teacher itself, where none is given."""

    warmup_steps: int = setting(100, "updates over which the learning rates rise from 0")
    times: Literal["antithetic", "iid", "bell", "least_variance"] = setting(
        "antithetic", "how t is sampled, see objective.times"
    )
    matmul_dtype: Literal["same", "bfloat16", "auto"] = setting(
        "same", "see objective.matmul_dtype; auto: bfloat16 where the hardware has instructions for it"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "warmup_steps")


@section
class TeacherConfig:
    """The teacher: the network that is distilled."""

    KINDS: ClassVar[Mapping[str, str]] = {
        "train": "a small network, trained first and kept in the cache",
        "pretrained": "the checkpoint at `teacher.path`",
        "random": "random weights, to try out speed and memory",
    }
    PATH_KIND: ClassVar[str] = "pretrained"
    PATH_KEYS: ClassVar[tuple[str, ...]] = ("path", "weights")

    kind: Literal["train", "pretrained", "random"] = setting(
        "train", "where the teacher comes from; usually set as teacher=<kind> or teacher=<path>"
    )
    path: str | None = setting(None, "a folder, a checkpoint file or a name on the Hugging Face hub")
    weights: Literal["ema", "raw"] = setting(
        "ema", "which weights to read from a checkpoint that holds both: the moving average or the raw ones"
    )
    pretrain: TeacherPretrainConfig = setting(TeacherPretrainConfig())

    def __post_init__(self) -> None:
        named = self.kind != "pretrained" or bool(self.path)
        check(named, "path", self.path, "a folder, file or hub name where teacher.kind=pretrained")

    def unused(self) -> dict[str, str]:
        """The path of a teacher that is made here, and how one that is given would be trained."""
        reason = f"where teacher.kind={self.kind}"
        of_given = {} if self.kind == "pretrained" else {"path": f"{reason}; teacher=<path> reads one"}
        pretraining = (
            [name for name in fields(type(self.pretrain)) if name != "seed"] if self.kind == "random" else [""]
        )
        return of_given | {
            "pretrain" + (f".{name}" if name else ""): reason for name in pretraining if self.kind != "train"
        }


@section
class ImageDataConfig:
    """Images: built-in ones, or those of a path."""

    KINDS: ClassVar[Mapping[str, str]] = {
        "digits": "scikit-learn's handwritten digits",
        "patches": "patches of scikit-learn's photographs",
        "files": "the images at `data.path`",
    }
    PATH_KIND: ClassVar[str] = "files"
    PATH_KEYS: ClassVar[tuple[str, ...]] = ("path",)

    kind: Literal["digits", "patches", "files"] = setting(
        "digits", "where the images come from; usually set as data=<kind> or data=<path>"
    )
    path: str | None = setting(
        None, "an .npz file, a folder (CIFAR-10's own, of class folders, of tars), a tar, or a hub name"
    )
    size: int | None = setting(None, "rows and columns of an image; null: as the files have them")
    channels: Literal[1, 3] = setting(3, "colour channels: 1 for grey, 3 for colour")
    crop: bool = setting(False, "crop and resize images of another size or mode; without it they are an error")
    validation_share: float = setting(
        0.1, "share of the images kept for validation, where the source has no validation set"
    )
    skip_bad: bool = setting(False, "skip images that cannot be read, and count them")

    def __post_init__(self) -> None:
        check(self.kind != "files" or bool(self.path), "path", self.path, "a path or hub name where data.kind=files")
        check(self.size is None or self.size >= 1, "size", self.size, "at least 1, or null")
        check(not self.crop or self.size is not None, "size", self.size, "at least 1 where crop=true")
        check(0 < self.validation_share < 1, "validation_share", self.validation_share, "in (0, 1)")

    @property
    def source(self) -> str:
        """The name of the built-in images, or the path."""
        return self.path if self.kind == "files" and self.path else self.kind

    def unused(self) -> dict[str, str]:
        """How files are found and read, for built-in images."""
        names = () if self.kind == "files" else ("path", "channels", "crop", "skip_bad")
        return dict.fromkeys(names, f"where data.kind={self.kind}; data=<path> reads files")


@section
class ImageEvalConfig:
    """The closing report of a run on images."""

    skip: bool = setting(False, "end without a report")
    steps: Ints = setting((2, 4, 8, 16), "numbers of sampling steps that are compared")
    num_samples: int = setting(1000, "images sampled for each model and number of steps, over all seeds")
    seeds: Ints = setting((0,), "random seeds of sampling; their images are pooled for the intervals")
    batch_size: int = setting(64, "images sampled at once")
    features: str = setting(
        "classifier", "features that FID compares: classifier (trained on the run's images), inception or pixels"
    )
    against: Literal["train", "validation"] = setting("train", "which real images samples are compared with")
    bootstrap: int = setting(1000, "bootstrap resamples for each 95 % interval")
    grid: int = setting(12, "rows and columns of samples.png")


@section
class RunSettings:
    """One run, or with `rounds` a chain of them, each of which learns from the one before it."""

    PROCESS: ClassVar[type] = MaskedProcess
    HAS_CLASSES: ClassVar[bool] = False
    usual_sampler: ClassVar[str] = "ancestral"  # the student's, by name, where none is said: see `Usual`
    STUDENTS_OWN: ClassVar[tuple[str, ...]] = ("dropout",)  # of `model`: what a student need not share with its teacher
    OLD_KEYS: ClassVar[Mapping[str, str]] = {
        "lambda.path=token": "mixture=token",
        "lambda.path=adaln": "mixture=adaln",
        "lambda.path=head": "mixture=codes",
        "lambda.path=classes": "mixture=class_chain",
        "lambda.path": "mixture",
        "lambda.law": "mixture.distribution",
        "lambda.tie": "mixture.ties",
        "lambda.sweeps": "mixture.sinkhorn_iterations",
        "lambda.trunk=frozen": "mixture.freeze_backbone=true",
        "lambda.trunk=train": "mixture.freeze_backbone=false",
        "lambda.trunk": "mixture.freeze_backbone",
        "lambda": "mixture",
        "objective=di4c_codes": "recipe=di4c",
        "objective=di4c_paper": "recipe=di4c_paper",
        "optim.latent_lr_scale": "optim.mixture_lr_scale",
        "sampler=hybrid": "decoding.hybrid_last=<steps>, with any sampler",
        "sampler.greedy_end": "decoding.end=argmax",
        **OLD_OBJECTIVE_KEYS,
    }

    run: RunConfig = setting(RunConfig(), identity=False)
    mixture: MixtureSettings = choice(MIXTURES, ClassChainSettings(), "what λ is, and how it enters the network")
    objective: Any = choice(OBJECTIVES, Likelihood(), "what training minimises")
    model: Any
    lora: LoraSettings = setting(LoraSettings())
    optim: OptimConfig = setting(OptimConfig())
    train: TrainConfig = setting(TrainConfig())
    zero: ZeroConfig = setting(ZeroConfig(), identity=False)
    teacher: TeacherConfig = setting(TeacherConfig())
    sampler: Any = choice(WITH_USUAL, Usual(), "how the closing report samples", identity=False)
    decoding: Decoding = setting(Decoding(), identity=False)
    export: Literal["auto", "head", "merged"] = setting(
        "auto",
        "how a student over a frozen teacher is saved; head: λ's weights and where the teacher is; auto: merged if the run trained it",
        identity=False,
    )
    wandb: WandbConfig = setting(WandbConfig(), identity=False)
    tensorboard: TensorboardConfig = setting(TensorboardConfig(), identity=False)
    rounds: Rounds = setting(
        (), "overrides of each round of a chain of runs: [{objective: sdtt, train.steps: 300}, ...]"
    )

    def __post_init__(self) -> None:
        check_process(resolved(self.sampler, self), self.PROCESS, self.decoding)
        blocks, at = getattr(self.model, "num_blocks", None), getattr(self.mixture, "inject_at", 0)
        if (
            blocks is not None and self.teacher.kind != "pretrained"
        ):  # else the checkpoint says how many blocks there are
            check(-blocks <= at < blocks, "mixture.inject_at", at, f"below model.num_blocks={blocks}")
        frozen = self.objective.takes_mixture and getattr(self.mixture, "freeze_backbone", False)
        allowed = "0 where mixture.freeze_backbone=true, which leaves the network as it is"
        check(not (self.lora.rank and frozen), "lora.rank", self.lora.rank, allowed)
        needs = self.objective.needs_teacher
        check(
            needs or not frozen,
            "mixture.freeze_backbone",
            True,
            "false where objective.init=scratch, which trains the network too",
        )
        data_kind = getattr(getattr(self, "data", None), "kind", None)
        samples = needs and self.teacher.kind == "pretrained" and data_kind == "shards"
        allowed = "corpus, or teacher where a teacher is given (teacher=<path>) and data=shards are samples of it"
        check(samples or self.objective.source == "corpus", "objective.source", self.objective.source, allowed)
        check(needs or not self.lora.rank, "lora.rank", self.lora.rank, "0 where no teacher is given to begin from")
        alone = self.teacher.kind == "pretrained" and self.export != "merged"
        apart = not needs or self.zero.teacher == "replicated" or alone
        allowed = "replicated, unless a teacher is given (teacher=<path>) and export is not merged"
        check(apart, "zero.teacher", self.zero.teacher, allowed)
        if not self.objective.takes_mixture:
            return
        self.mixture.check_num_lambdas(self.objective.num_lambdas)
        allowed = f"likelihood where mixture={kind_of(MIXTURES, self.mixture)}, whose marginals are not known"
        is_asked = self.objective.needs_marginals and not self.mixture.has_marginals
        check(not is_asked, "objective", kind_of(OBJECTIVES, self.objective), allowed)
        inputs, kind = getattr(self.objective, "distil_inputs", "shared"), kind_of(MIXTURES, self.mixture)
        each = kind in ("token", "adaln")
        check(each or inputs == "shared", "objective.distil_inputs", inputs, f"shared where mixture={kind}")
        order = getattr(self.mixture, "order", None) if kind == "class_chain" else "rows"
        has_pixels = self.PROCESS is GaussianChain
        check(has_pixels or order == "rows", "mixture.order", order, "rows where the positions are no pixels")

    def unused(self) -> dict[str, str]:
        """Sections that the objective, or a given teacher, has no use for."""
        reason = f"where objective={kind_of(OBJECTIVES, self.objective)}"
        found = {} if self.objective.takes_mixture else {"mixture": reason, "optim.mixture_lr_scale": reason}
        if self.train.dtype == "bfloat16" and hasattr(self.objective, "matmul_dtype"):
            found["objective.matmul_dtype"] = "where train.dtype=bfloat16"
        if not self.HAS_CLASSES:
            found |= dict.fromkeys(("decoding.guidance", "decoding.guidance_ramp"), "where there are no classes")
        if not self.objective.needs_teacher:
            found |= {"teacher": reason, "zero.teacher": reason, "decoding.hybrid_last": reason}
        elif self.teacher.kind == "pretrained":
            names = [name for name in fields(type(self.model)) if name not in self.STUDENTS_OWN]
            found |= {f"model.{name}": "where a teacher is given, whose shape it is" for name in names}
        return found


def closing(config: Any, kind: type[T], **more: Any) -> T:
    """The settings `kind` of a run's closing report, by its `eval` and `more`. Raises `SettingError` for impossible ones."""
    known = fields(kind)
    chosen = {name: value for name, value in to_dict(config.eval).items() if name in known}
    return build(kind, {**chosen, **more, "device": config.run.device}, key="eval")
