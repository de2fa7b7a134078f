"""Every setting of a run, typed: frozen dataclasses that check themselves.

The YAML files in `configs/` carry one section a dataclass; `di4c_lm.cli` reads them. Times are in [0, 1] (1 is pure noise), sizes in
tokens or sequences, learning rates per optimiser step.
"""

import dataclasses
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass

_STRICT = ConfigDict(extra="forbid", strict=True)
Pair = Annotated[tuple[float, float], Strict(strict=False)]
Ints = Annotated[tuple[int, ...], Strict(strict=False)]
Rounds = Annotated[tuple[dict[str, Any], ...], Strict(strict=False)]


def check(ok: object, key: str, value: object, allowed: str) -> None:
    """Raise a `ValueError` that names `key`, shows `value` and says what is `allowed`, unless `ok`."""
    if not ok:
        raise ValueError(f"{key}={value!r} is impossible: allowed is {allowed}")


def _at_least(owner: object, low: int | float, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        check(value >= low, name, value, f"a value of at least {low}")


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        check(value > 0, name, value, "a value above 0")


def _unit(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        check(0 <= value <= 1, name, value, "a value in [0, 1]")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """Where a run lives. `name` absent: a name made from the hash of the settings. `dir` absent: `outputs/<name>`."""

    name: str | None = None
    dir: str | None = None
    cache_dir: str | None = None  # trained teachers and judges; absent: $DI4C_CACHE, else ~/.cache/di4c_lm
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0  # CPU threads a rank; 0: cores divided among the ranks of the node

    def __post_init__(self) -> None:
        _at_least(self, 0, "threads")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
    judge_share: float = (
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
        _at_least(self, 2, "length")
        _at_least(self, 258, "vocab_size")
        _at_least(self, 1, "shuffle_buffer")
        check(0 < self.validation_share < 1, "validation_share", self.validation_share, "a value in (0, 1)")
        rest = 1 - self.validation_share
        check(0 <= self.judge_share < rest, "judge_share", self.judge_share, f"a value in [0, {rest:g})")
        at_hand = self.kind != "shards" and not self.streaming
        check(at_hand or self.judge_share == 0, "judge_share", self.judge_share, "0 when streaming=true or kind=shards")
        check(self.kind != "files" or bool(self.path), "path", self.path, "a file or folder when kind=files")
        check(
            self.kind != "shards" or bool(self.path), "path", self.path, "a folder of prepared shards when kind=shards"
        )
        check(self.kind != "shards" or not self.streaming, "streaming", self.streaming, "false when kind=shards")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    """The DiT of MDLM and SDTT."""

    hidden_size: int = 192
    num_blocks: int = 4
    num_heads: int = 4
    cond_dim: int = 128
    dropout: float = 0.0
    time_conditioning: bool = False
    attention: Literal["auto", "sdpa", "flash"] = "auto"

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "num_blocks", "num_heads", "cond_dim")
        check(
            self.hidden_size % (2 * self.num_heads) == 0,
            "hidden_size",
            self.hidden_size,
            f"a multiple of 2 * num_heads = {2 * self.num_heads}",
        )
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a value in [0, 1)")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimConfig:
    """AdamW with linear warm-up, clipping by global norm, and an exponential moving average of the weights."""

    lr: float = 1e-3
    betas: Pair = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 50
    schedule: Literal["constant", "cosine"] = "constant"  # after the warm-up; cosine ends at a tenth of lr
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    latent_lr_scale: float = 1.0  # factor on lr for the parameters of the λ path

    def __post_init__(self) -> None:
        _positive(self, "lr", "eps", "clip_norm", "latent_lr_scale")
        _at_least(self, 0, "weight_decay", "warmup_steps")
        check(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two values in [0, 1)")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a value in [0, 1)")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainConfig:
    """The loop: how many updates, of how many sequences, and what is kept."""

    steps: int = 1000
    seed: int = 0
    micro_batch_size: int = 8  # sequences a rank and forward pass
    gradient_accumulation: int = 1
    dtype: Literal["float32", "bfloat16"] = "float32"
    activation_checkpointing: bool = False
    save_every: int = 500  # updates; 0: only at the end
    keep_checkpoints: int = 2
    resume: Literal["auto", "never", "must"] = "auto"
    log_every: int = 10
    max_bad_steps: int = 10
    rank_timeout_s: int | float = 600  # a rank that does not move for so long ends the run, by name; 0: never
    reset_optimizer: bool = True  # in a chain of rounds: false goes on with the moments of the round before

    def __post_init__(self) -> None:
        _at_least(self, 0, "seed", "save_every", "rank_timeout_s")
        _at_least(
            self,
            1,
            "steps",
            "micro_batch_size",
            "gradient_accumulation",
            "keep_checkpoints",
            "log_every",
            "max_bad_steps",
        )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ZeroConfig:
    """DeepSpeed ZeRO. `config`: a DeepSpeed JSON of the user's own, merged with ours after a check for contradictions."""

    stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False
    config: str | None = None

    def __post_init__(self) -> None:
        check(not (self.offload and self.stage == 0), "offload", self.offload, "false at stage 0")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TimesConfig:
    """Law of t: `uniform` on (0, 1]; `paper` (30 % on (0, δ], else on [δ, 1]); `above_hop`: the hop first, then t uniform on (hop, 1].

    A share `mass_at_one` of the draws is moved to t = 1, and a share `grid_share` to the uniform grids of `grid_steps` steps. Where the
    lowest time of a process is above 0, 0 stands for that.
    """

    law: Literal["uniform", "paper", "above_hop"] = "uniform"
    mass_at_one: float = 0.0
    grid_share: float = 0.0
    grid_steps: Ints = (1, 2, 4, 8)

    def __post_init__(self) -> None:
        _unit(self, "mass_at_one", "grid_share")
        total = self.mass_at_one + self.grid_share
        check(total <= 1, "mass_at_one + grid_share", total, "at most 1")
        check(
            len(self.grid_steps) > 0 and min(self.grid_steps) >= 1,
            "grid_steps",
            self.grid_steps,
            "step counts of at least 1",
        )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class HopConfig:
    """Law of the hop t - u that the teacher makes, in `teacher_steps` equal steps.

    `fixed`: min(size, t/2), the published rule. `fraction`: size · t. `log_uniform`, `uniform`: on [low, high], at most t/2.
    """

    law: Literal["fixed", "fraction", "log_uniform", "uniform"] = "fixed"
    size: float = 1 / 1024
    low: float = 0.001
    high: float = 0.01
    teacher_steps: int = 1

    def __post_init__(self) -> None:
        _unit(self, "size", "low", "high")
        check(0 < self.low <= self.high, "low", self.low, f"a value in (0, high={self.high}]")
        check(self.size > 0, "size", self.size, "a value in (0, 1]")
        _at_least(self, 1, "teacher_steps")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class MdlmConfig:
    """MDLM's continuous-time bound, from data alone: trains a model anew, or goes on from the teacher's weights."""

    kind: Literal["mdlm"] = "mdlm"
    init: Literal["scratch", "teacher"] = "scratch"
    times: Literal["antithetic", "iid"] = "antithetic"  # antithetic: one t in each of G equal parts, G the global batch
    bound_draws: int = 8  # times a held-out sequence, in the closing report's perplexity bound
    chunk_rows: int = 0  # as in Di4CConfig

    def __post_init__(self) -> None:
        _at_least(self, 1, "bound_draws")
        _at_least(self, 0, "chunk_rows")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SdttConfig:
    """SDTT: the student learns to say in one call what the teacher says over `teacher_steps` of its steps.

    A teacher's step in round r is `dt` · `growth`^(r-1), at most t / `teacher_steps`. `time_grid=legacy` repeats the published code's
    mis-interpolated times. The published runs are `kl_backward` (kld), `mse` and `tv` (tvd).
    """

    kind: Literal["sdtt"] = "sdtt"
    divergence: Literal["kl_backward", "kl_forward", "mse", "tv"] = "kl_backward"
    dt: float = 1 / 1024
    round: int = 1
    growth: float = 2.0
    teacher_steps: int = 2
    time_grid: Literal["exact", "legacy"] = "exact"
    chunk_rows: int = 0  # as in Di4CConfig

    def __post_init__(self) -> None:
        _at_least(self, 1, "round", "growth", "teacher_steps")
        _at_least(self, 0, "chunk_rows")
        _positive(self, "dt")
        allowed = f"at most 1 / teacher_steps = {1 / self.teacher_steps:g}"
        check(self.teacher_steps * self.step <= 1, "dt * growth^(round - 1)", self.step, allowed)

    @property
    def step(self) -> float:
        """A teacher's step in this round."""
        return self.dt * self.growth ** (self.round - 1)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Di4CConfig:
    """The Di4C objective (paper, section 3): weights, gates, laws of t and of the hop."""

    kind: Literal["di4c"] = "di4c"
    num_lambdas: int = 16  # L; 0: every code of a codebook
    consistency_samples: int = 0  # x_u and x̂ drawn for each x_t; 0: L, as in the paper
    alpha: Literal["sigmoid", "linear", "constant"] = "sigmoid"
    alpha_scale: float = 0.1
    data_weight: float = 1.0  # multiplies the datapoint term
    marginal_weight: float = 1.0  # multiplies KL(teacher || student marginal)
    consistency_weight: float = 1.0
    distil_weight: float = 1.0
    lead_steps: int = (
        0  # updates at the start that learn from the datapoint's likelihood alone, without control variate
    )
    control_variate_data: bool = True
    control_variate_consistency: bool = True
    delta: float = 0.02
    delta_weight: bool = False  # weight the distillation term by 1/δ
    # `shared`: the distillation term at x_t where t < δ, in place of consistency. `own`: always, each λ at an x of its own, whose time is
    # the process's lowest or, as often, uniform up to δ above it.
    distil_inputs: Literal["shared", "own"] = "shared"
    label_drop: float = 0.0  # share of the examples whose class is hidden, where a batch has classes
    positions: Literal["masked", "all"] = "masked"
    chunk_rows: int = 0  # rows of logits (positions times L) read out at once; 0: 2^23 logits on a CPU, 2^26 on a GPU
    matmul_dtype: Literal["same", "bfloat16"] = "same"
    times: TimesConfig = field(default_factory=TimesConfig)
    hop: HopConfig = field(default_factory=HopConfig)

    def __post_init__(self) -> None:
        _at_least(self, 0, "num_lambdas", "consistency_samples", "lead_steps")
        needs = self.num_lambdas == 0 and self.consistency_weight > 0
        allowed = "at least 1 where num_lambdas=0 and consistency_weight is not"
        check(not needs or self.consistency_samples, "consistency_samples", self.consistency_samples, allowed)
        _at_least(
            self,
            0,
            "chunk_rows",
            "alpha_scale",
            "data_weight",
            "marginal_weight",
            "consistency_weight",
            "distil_weight",
        )
        _unit(self, "delta", "label_drop")
        if self.times.law == "above_hop":
            law, longest = self.hop.law, self.hop.size if self.hop.law == "fixed" else self.hop.high
            check(law != "fraction", "hop.law", law, "fixed, log_uniform or uniform where times.law=above_hop")
            check(longest <= 0.5, "hop", longest, "at most 0.5 where times.law=above_hop")


ObjectiveConfig = Annotated[MdlmConfig | SdttConfig | Di4CConfig, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LatentConfig:
    """λ: its law, and the way it enters the student's network.

    `path=token` is the published extra token; `adaln` scales and shifts the norms. `inject_at=k` runs the blocks before k once per x_t;
    a negative k counts from the end, -1 being the last block. `head` enters behind the last attention, where λ may be a string of codes,
    one a window of positions: see `di4c_lm.models.mixture_head`. `classes` makes λ a string of token classes behind the readout, which
    leaves the marginals as they are: see `di4c_lm.models.class_head`.
    """

    law: Literal["uniform", "stratified", "gaussian", "codebook"] = "uniform"
    path: Literal["token", "adaln", "head", "classes"] = "token"
    inject_at: int = 0
    dim: int = 1  # law=gaussian: components of λ
    codebook_size: int = 16  # law=codebook: its vectors; 0 in a run's settings: as many as L, which enumerates them
    init_scale: float = 0.02  # standard deviation of the codebook, or of the λ path's first weights
    window: int = 0  # path=head: positions that share a code; 0: one code a sequence
    tie: Literal["chain", "none"] = "chain"  # path=head: whether a window's code depends on the one before
    weights: Literal["context", "uniform"] = "context"  # path=head: whether the law of the codes is predicted from x_t

    relations: int = 1  # path=classes: kinds of ties between neighbours, mixed with none at all as the context has it
    sweeps: int = 2  # path=classes: rounds of scaling that fit the chain to its marginals
    trunk: Literal["train", "frozen"] = "train"  # frozen: the teacher's weights stay, and the λ path alone is trained

    def __post_init__(self) -> None:
        _at_least(self, 0, "codebook_size", "window")
        check(not self.is_string or self.law == "codebook", "law", self.law, f"codebook when path={self.path}")
        _at_least(self, 1, "dim", "relations", "sweeps")
        _positive(self, "init_scale")

    @property
    def is_string(self) -> bool:
        """Whether λ is a string of codes, tied along the sequence."""
        return self.path in ("head", "classes")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PretrainConfig:
    """How a teacher (by MDLM's bound) or a judge (next token) is trained when none is given."""

    steps: int = 1500
    batch_size: int = 32
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "batch_size")
        _positive(self, "lr")
        _at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class JudgeConfig:
    """The language model whose perplexity is reported: `train` for a small GPT-2 trained on the run's corpus, else a folder or hub name."""

    path: str = "train"
    hidden_size: int = 192
    num_blocks: int = 4
    num_heads: int = 4
    batch_size: int = 32
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def __post_init__(self) -> None:
        _positive(self, "hidden_size", "num_blocks", "num_heads", "batch_size")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
        _at_least(self, 2, "num_samples")
        _at_least(self, 1, "batch_size", "bootstrap")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "disabled"
    project: str = "di4c-lm"
    entity: str | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Config:
    """One training run, or with `rounds` a chain of them.

    A round is a mapping of the words that set it apart, `{objective: sdtt, train.steps: 300}`; each learns from the one before it.
    """

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)  # `lambda` in YAML and on the command line
    objective: ObjectiveConfig = field(default_factory=Di4CConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)
    rounds: Rounds = ()

    def __post_init__(self) -> None:
        blocks, at = self.model.num_blocks, self.latent.inject_at
        own_shape = self.teacher.kind != "pretrained"  # else the checkpoint says how many blocks there are
        check(
            not own_shape or -blocks <= at < blocks, "lambda.inject_at", at, f"a block below model.num_blocks={blocks}"
        )
        if isinstance(self.objective, Di4CConfig) and self.latent.law == "codebook" and self.latent.codebook_size:
            size, count = self.latent.codebook_size, self.objective.num_lambdas
            check(count <= size, "objective.num_lambdas", count, f"at most lambda.codebook_size={size}")
            every = not self.latent.is_string or count in (0, size)
            check(
                every,
                "objective.num_lambdas",
                count,
                f"lambda.codebook_size={size}, or 0, when lambda.path={self.latent.path}: all are enumerated",
            )


def to_dict(config: Any) -> dict[str, Any]:
    """A section as nested plain values, under the names that YAML uses."""
    plain = dataclasses.asdict(config)
    return {"lambda" if key == "latent" else key: value for key, value in plain.items()}
