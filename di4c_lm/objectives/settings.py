"""What is minimised."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from di4c_lm.core.settings import STRICT, Ints, at_least, check, positive, unit
from di4c_lm.mixtures.settings import LatentConfig


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
        unit(self, "mass_at_one", "grid_share")
        total = self.mass_at_one + self.grid_share
        check(total <= 1, "mass_at_one + grid_share", total, "at most 1")
        check(
            len(self.grid_steps) > 0 and min(self.grid_steps) >= 1,
            "grid_steps",
            self.grid_steps,
            "step counts of at least 1",
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
        unit(self, "size", "low", "high")
        check(0 < self.low <= self.high, "low", self.low, f"a value in (0, high={self.high}]")
        check(self.size > 0, "size", self.size, "a value in (0, 1]")
        at_least(self, 1, "teacher_steps")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MdlmConfig:
    """MDLM's continuous-time bound, from data alone: trains a model anew, or goes on from the teacher's weights."""

    kind: Literal["mdlm"] = "mdlm"
    init: Literal["scratch", "teacher"] = "scratch"
    times: Literal["antithetic", "iid"] = "antithetic"  # antithetic: one t in each of G equal parts, G the global batch
    bound_draws: int = 8  # times a held-out sequence, in the closing report's perplexity bound
    chunk_rows: int = 0  # as in Di4CConfig

    def __post_init__(self) -> None:
        at_least(self, 1, "bound_draws")
        at_least(self, 0, "chunk_rows")


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
        at_least(self, 1, "round", "growth", "teacher_steps")
        at_least(self, 0, "chunk_rows")
        positive(self, "dt")
        allowed = f"at most 1 / teacher_steps = {1 / self.teacher_steps:g}"
        check(self.teacher_steps * self.step <= 1, "dt * growth^(round - 1)", self.step, allowed)

    @property
    def step(self) -> float:
        """A teacher's step in this round."""
        return self.dt * self.growth ** (self.round - 1)


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
        at_least(self, 0, "num_lambdas", "consistency_samples", "lead_steps")
        needs = self.num_lambdas == 0 and self.consistency_weight > 0
        allowed = "at least 1 where num_lambdas=0 and consistency_weight is not"
        check(not needs or self.consistency_samples, "consistency_samples", self.consistency_samples, allowed)
        at_least(
            self,
            0,
            "chunk_rows",
            "alpha_scale",
            "data_weight",
            "marginal_weight",
            "consistency_weight",
            "distil_weight",
        )
        unit(self, "delta", "label_drop")
        if self.times.law == "above_hop":
            law, longest = self.hop.law, self.hop.size if self.hop.law == "fixed" else self.hop.high
            check(law != "fraction", "hop.law", law, "fixed, log_uniform or uniform where times.law=above_hop")
            check(longest <= 0.5, "hop", longest, "at most 0.5 where times.law=above_hop")


ObjectiveConfig = Annotated[MdlmConfig | SdttConfig | Di4CConfig, Field(discriminator="kind")]


def check_draws(latent: LatentConfig, objective: Di4CConfig) -> None:
    """Raise `ValueError` for more draws than a codebook has vectors, or for some of the codes of a string, whose law needs all."""
    size, count = latent.codebook_size, objective.num_lambdas
    if latent.law != "codebook" or size == 0:
        return
    check(count <= size, "objective.num_lambdas", count, f"at most lambda.codebook_size={size}")
    allowed = f"lambda.codebook_size={size}, or 0, when lambda.path={latent.path}: all are enumerated"
    check(not latent.is_string or count in (0, size), "objective.num_lambdas", count, allowed)
