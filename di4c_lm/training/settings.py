"""How any run trains: where it lives, the optimiser, the loop, ZeRO, and how a teacher or evaluator is trained before it."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from di4c_lm.core.settings import Pair, at_least, check, positive, section, setting


@section
class RunConfig:
    """Where a run lives, and what it runs on."""

    name: str | None = setting(None, "name of the run; null: made from a hash of its settings")
    dir: str | None = setting(None, "folder of the run; null: outputs/<name>")
    cache_dir: str | None = setting(
        None, "folder that keeps trained teachers and evaluators; null: $DI4C_CACHE, else ~/.cache/di4c_lm"
    )
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "cpu, cuda, or auto: cuda where there is a GPU")
    threads: int = setting(0, "CPU threads per rank; 0: the node's cores divided among its ranks")

    def __post_init__(self) -> None:
        at_least(self, 0, "threads")

    @property
    def cache(self) -> Path:
        """Where trained teachers and evaluators are kept."""
        return Path(self.cache_dir or os.environ.get("DI4C_CACHE") or Path.home() / ".cache" / "di4c_lm")


@section
class OptimConfig:
    """The optimiser: linear warm-up, clipping by global norm, and an exponential moving average of the weights."""

    KINDS: ClassVar[Mapping[str, str]] = {
        "adamw": "AdamW for all parameters",
        "muon": "Muon for the matrices of transformer blocks, AdamW for all else",
    }

    kind: Literal["adamw", "muon"] = setting("adamw", "the optimiser; usually set as optim=<kind>")
    lr: float = setting(1e-3, "AdamW's learning rate after the warm-up")
    muon_lr: float = setting(0.02, "Muon's learning rate after the warm-up")
    muon_momentum: float = setting(0.95, "Muon's decay rate of the momentum (Nesterov's)")
    betas: Pair = setting((0.9, 0.999), "AdamW's decay rates of the two moments")
    eps: float = setting(1e-8, "AdamW's ε, added to the root of the second moment")
    weight_decay: float = setting(0.0, "share of the weights, times the learning rate, that an update takes off")
    warmup_steps: int = setting(50, "updates over which the learning rate rises from 0")
    schedule: Literal["constant", "cosine"] = setting(
        "constant", "learning rate after the warm-up: constant, or a cosine down to a tenth of lr"
    )
    clip_norm: float = setting(1.0, "gradients above this global norm are clipped")
    ema_decay: float = setting(0.9999, "decay of the moving average of the weights, which is what a run exports")
    mixture_lr_scale: float = setting(1.0, "factor on the learning rate for the parameters of λ")

    def __post_init__(self) -> None:
        positive(self, "lr", "muon_lr", "eps", "clip_norm", "mixture_lr_scale")
        at_least(self, 0, "weight_decay", "warmup_steps")
        check(0 <= self.muon_momentum < 1, "muon_momentum", self.muon_momentum, "in [0, 1)")
        check(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two values in [0, 1)")
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")

    def unused(self) -> dict[str, str]:
        """Muon's settings where AdamW updates all."""
        return dict.fromkeys(("muon_lr", "muon_momentum") if self.kind == "adamw" else (), "where optim=adamw")

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Learning rate (AdamW's) of update number `step` (from 0) of `total_steps`: nothing to save, nothing to resume.

        Linear from lr/warmup_steps to lr over the warm-up; then lr, or half a cosine down to lr/10 at the last update.
        """
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        done = (step - self.warmup_steps) / max(1, total_steps - 1 - self.warmup_steps)
        low = self.lr / 10
        return low + (self.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@section
class TrainConfig:
    """The loop: how many updates, of how many sequences, and what is kept."""

    steps: int = setting(1000, "updates of the whole run")
    seed: int = setting(0, "random seed of weights, data order and noise")
    micro_batch_size: int = setting(8, "sequences in a forward pass of one rank")
    gradient_accumulation: int = setting(1, "forward passes of each rank in an update")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of the networks' weights and activations; the optimiser keeps float32"
    )
    activation_checkpointing: bool = setting(
        False, "recompute activations in the backward pass: less memory, more time"
    )
    save_every: int = setting(500, "updates between checkpoints; 0: only one at the end", identity=False)
    keep_checkpoints: int = setting(2, "how many of the newest checkpoints are kept", identity=False)
    resume: Literal["auto", "never", "must"] = setting(
        "auto", "auto: resume from the last checkpoint if there is one", identity=False
    )
    log_every: int = setting(10, "updates between logged lines", identity=False)
    max_bad_steps: int = setting(
        10, "updates in a row without a finite loss or gradient after which the run ends", identity=False
    )
    rank_timeout_s: int | float = setting(
        600, "seconds after which a rank that hangs ends the run, by name; 0: never", identity=False
    )
    reset_optimizer: bool = setting(
        True, "begin with fresh AdamW moments; false in a chain of rounds: keep those of the round before"
    )

    def __post_init__(self) -> None:
        at_least(self, 0, "seed", "save_every", "rank_timeout_s")
        at_least(self, 1, "steps", "micro_batch_size", "gradient_accumulation")
        at_least(self, 1, "keep_checkpoints", "log_every", "max_bad_steps")


@section
class ZeroConfig:
    """DeepSpeed ZeRO: what the ranks share out."""

    stage: Literal[0, 1, 2, 3] = setting(
        0, "what is partitioned over the ranks; 1: the optimiser's state, 2: gradients too, 3: weights too"
    )
    offload: bool = setting(False, "keep the optimiser's state in CPU memory")
    teacher: Literal["replicated", "partitioned"] = setting(
        "replicated",
        "the frozen teacher: whole on each rank, or its blocks partitioned and gathered one by one as they run",
    )
    config: str | None = setting(
        None, "a DeepSpeed JSON file, merged with the run's own settings; contradictions are refused"
    )

    def __post_init__(self) -> None:
        check(not (self.offload and self.stage == 0), "offload", self.offload, "false at stage 0")


@section
class PretrainConfig:
    """How the run trains this network itself, where none is given."""

    steps: int = setting(1500, "updates of its training")
    batch_size: int = setting(32, "sequences in an update, over all ranks")
    lr: float = setting(1e-3, "AdamW's learning rate after the warm-up")
    optim: Literal["adamw", "muon"] = setting(
        "adamw", "adamw, or muon: for the matrices of transformer blocks, beside AdamW for all else"
    )
    muon_lr: float = setting(0.02, "Muon's learning rate after the warm-up")
    seed: int = setting(0, "random seed of its weights, data order and noise")

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size")
        positive(self, "lr", "muon_lr")
        at_least(self, 0, "seed")

    def unused(self) -> dict[str, str]:
        """Muon's rate where AdamW updates all."""
        return {} if self.optim == "muon" else {"muon_lr": f"where optim={self.optim}"}


@section
class WandbConfig:
    """Logging to Weights & Biases."""

    mode: Literal["online", "offline", "disabled"] = setting(
        "disabled", "online, offline (kept in the run's folder) or disabled"
    )
    project: str = setting("di4c-lm", "Weights & Biases project of the run")
    entity: str | None = setting(None, "user or team that owns the project; null: your default")

    def unused(self) -> dict[str, str]:
        """Where a run would be shown."""
        return dict.fromkeys(("project", "entity") if self.mode == "disabled" else (), "where wandb.mode=disabled")


@section
class TensorboardConfig:
    """TensorBoard."""

    enabled: bool = setting(
        False, "true: the curves are written to the run's folder, for `tensorboard --logdir outputs`"
    )
