"""A run on text.

The YAML files in `configs/` carry one section a dataclass; `di4c_lm.core.cli` reads them. Times are in [0, 1] (1 is pure noise), sizes in
tokens or sequences, learning rates per optimiser step.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Strict
from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, Ints, at_least, check, choice
from di4c_lm.domains.checks import check_lambdas
from di4c_lm.measure.text.evaluator import EvaluatorConfig
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DitConfig
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.registry import OBJECTIVES, ObjectiveSettings
from di4c_lm.training.settings import OptimConfig, PretrainConfig, RunConfig, TrainConfig, WandbConfig, ZeroConfig

Rounds = Annotated[tuple[dict[str, Any], ...], Strict(strict=False)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """A corpus and how it is cut into sequences of `length` tokens."""

    kind: Literal["builtin", "files", "openwebtext", "shards"] = "builtin"
    # kind=files: a .jsonl, .txt or .parquet file, a folder of them, an fsspec URL, or several joined by commas. shards: a prepared folder
    path: str | None = None
    dataset: str = "Skylion007/openwebtext"  # kind=openwebtext: hub name
    split: str = "train"
    text_key: str = "text"
    length: int = 64  # D, tokens a sequence
    streaming: bool = False
    shuffle_buffer: int = 10_000  # sequences; streaming only
    validation_share: float = 0.05  # of the documents
    evaluator_share: float = (
        0.0  # of the documents: read by a trained judge alone; 0: it reads what the models are trained on
    )
    # "train": a BPE of `vocab_size` entries trained on the corpus, with kind=shards the shards' own; else a folder, file or hub name
    tokenizer: str = "train"
    vocab_size: int = 1024
    wrap: bool = False  # BOS and EOS at both ends of each sequence, the MDLM and SDTT convention
    skip_bad: bool = False  # go on without records, files and shards that cannot be read, and count them
    verify: Literal["once", "always", "size"] = (
        "once"  # kind=shards: checksums read once a machine, at each start, or never
    )

    def __post_init__(self) -> None:
        at_least(self, 2, "length")
        at_least(self, 258, "vocab_size")
        at_least(self, 1, "shuffle_buffer")
        check(0 < self.validation_share < 1, "validation_share", self.validation_share, "a value in (0, 1)")
        rest = 1 - self.validation_share
        check(0 <= self.evaluator_share < rest, "evaluator_share", self.evaluator_share, f"a value in [0, {rest:g})")
        at_hand = self.kind != "shards" and not self.streaming
        check(
            at_hand or self.evaluator_share == 0,
            "evaluator_share",
            self.evaluator_share,
            "0 when streaming=true or kind=shards",
        )
        check(self.kind != "files" or bool(self.path), "path", self.path, "a file or folder when kind=files")
        check(
            self.kind != "shards" or bool(self.path), "path", self.path, "a folder of prepared shards when kind=shards"
        )
        check(self.kind != "shards" or not self.streaming, "streaming", self.streaming, "false when kind=shards")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TeacherConfig:
    """`train`: a small MDLM trained first and cached. `pretrained`: a folder, file or hub name in `path`. `random`: for trials of cost."""

    kind: Literal["train", "pretrained", "random"] = "train"
    path: str | None = None
    revision: str | None = None
    weights: Literal["ema", "raw"] = "ema"  # where a file holds both
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        check(
            self.kind != "pretrained" or bool(self.path),
            "path",
            self.path,
            "a folder, file or hub name when kind=pretrained",
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvalConfig:
    """The closing report of a run."""

    skip: bool = False
    steps: Ints = (1, 2, 4, 8, 16)
    num_samples: int = 256
    batch_size: int = 64
    seed: int = 0
    bootstrap: int = 1000  # resamples behind each 95 % interval

    def __post_init__(self) -> None:
        check(len(self.steps) > 0 and min(self.steps) >= 1, "steps", self.steps, "step counts of at least 1")
        at_least(self, 2, "num_samples")
        at_least(self, 1, "batch_size", "bootstrap")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """One training run, or with `rounds` a chain of them.

    A round is a mapping of the words that set it apart, `{objective: sdtt, train.steps: 300}`; each learns from the one before it.
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: DitConfig = field(default_factory=DitConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)  # `lambda` in YAML and on the command line
    objective: ObjectiveSettings = choice(OBJECTIVES, Likelihood(), "what is minimised")
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    evaluator: EvaluatorConfig = field(default_factory=EvaluatorConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    rounds: Rounds = ()

    def __post_init__(self) -> None:
        blocks, at = self.model.num_blocks, self.latent.inject_at
        own_shape = self.teacher.kind != "pretrained"  # else the checkpoint says how many blocks there are
        check(
            not own_shape or -blocks <= at < blocks, "lambda.inject_at", at, f"a block below model.num_blocks={blocks}"
        )
        if self.objective.takes_mixture:
            check_lambdas(self.latent, self.objective)
