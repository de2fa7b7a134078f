"""How any run trains: where it lives, the optimiser, the loop, ZeRO, and how a teacher or judge is trained before it."""

from typing import Literal

from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, Pair, at_least, check, positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Where a run lives. `name` absent: a name made from the hash of the settings. `dir` absent: `outputs/<name>`."""

    name: str | None = None
    dir: str | None = None
    cache_dir: str | None = None  # trained teachers and judges; absent: $DI4C_CACHE, else ~/.cache/di4c_lm
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0  # CPU threads a rank; 0: cores divided among the ranks of the node

    def __post_init__(self) -> None:
        at_least(self, 0, "threads")


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
        positive(self, "lr", "eps", "clip_norm", "latent_lr_scale")
        at_least(self, 0, "weight_decay", "warmup_steps")
        check(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two values in [0, 1)")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "a value in [0, 1)")


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
        at_least(self, 0, "seed", "save_every", "rank_timeout_s")
        at_least(
            self,
            1,
            "steps",
            "micro_batch_size",
            "gradient_accumulation",
            "keep_checkpoints",
            "log_every",
            "max_bad_steps",
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ZeroConfig:
    """DeepSpeed ZeRO. `config`: a DeepSpeed JSON of the user's own, merged with ours after a check for contradictions."""

    stage: Literal[0, 1, 2, 3] = 0
    offload: bool = False
    config: str | None = None

    def __post_init__(self) -> None:
        check(not (self.offload and self.stage == 0), "offload", self.offload, "false at stage 0")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PretrainConfig:
    """How a teacher (by MDLM's bound) or a judge (next token) is trained when none is given."""

    steps: int = 1500
    batch_size: int = 32
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size")
        positive(self, "lr")
        at_least(self, 0, "seed")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WandbConfig:
    """Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = "disabled"
    project: str = "di4c-lm"
    entity: str | None = None
