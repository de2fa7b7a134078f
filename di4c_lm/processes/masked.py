"""The absorbing process: every position is masked by itself, at the rate of a schedule, and comes back once. Its schedules and times."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import Ints, check, section, setting, unit
from di4c_lm.processes.process import Predict, Process, StateTensor, TimeTensor, UniformTensor
from di4c_lm.processes.rng import Rng, uniform

NEVER = -1e6  # the logit of a state that cannot be: its probability is exactly 0 in float32 and float64
_PAPER_LOW_SHARE = 0.3  # of the times lie below δ (published configuration of Di4C's text run)


@runtime_checkable
class Schedule(Protocol):
    """A masking schedule; `mask_prob` rises with t."""

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Probability that a position is masked at time `t` in [0, 1]."""
        ...


@dataclass(frozen=True)
class LogLinear:
    """MDLM's log-linear noise: sigma(t) = -log(1 - (1 - eps) t), so m(t) = (1 - eps) t (Sahoo et al. 2024, section 3)."""

    eps: float = 1e-3

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """(1 - eps) t."""
        return (1 - self.eps) * t

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Total noise, -log(1 - m(t))."""
        return -torch.log1p(-(1 - self.eps) * t)

    def rate(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """d sigma / dt."""
        return (1 - self.eps) / (1 - (1 - self.eps) * t)


@dataclass(frozen=True)
class Formula:
    """A schedule that is nothing but its m(t)."""

    formula: Callable[[Tensor], Tensor]

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """m(t)."""
        return self.formula(t)


# The schedules that MaskGIT compares (Chang et al. 2022, section 3.3) by their published names, in time t = 1 - r, from the one that
# reveals soonest on; cosine is MaskGIT's own, and MaskGIT-pytorch trains with arccos.
MASKGIT_SCHEDULES: dict[str, Schedule] = {
    "root": Formula(lambda t: 1 - (1 - t).clamp_min(0).sqrt()),
    "linear": LogLinear(eps=0.0),
    "square": Formula(lambda t: 1 - (1 - t) ** 2),
    "cosine": Formula(lambda t: torch.cos((1 - t) * (math.pi / 2)).clamp(0, 1)),
    "arccos": Formula(lambda t: torch.arccos((1 - t).clamp(-1, 1)) / (math.pi / 2)),
}


@dataclass(frozen=True)
class MaskedProcess(Process):
    """Masked diffusion (Sahoo et al. 2024; Shi et al. 2024) on tokens below `mask_id`, with MASK = `mask_id`.

    The first `given` positions are never masked: a prompt. Of those from `until` on none is revealed now: they are of a later block.
    """

    mask_id: int
    schedule: Schedule = field(default_factory=LogLinear)
    given: int = 0
    until: int | None = None
    min_time: ClassVar[float] = 0.0  # networks are asked for x_0 at any time above it

    def corrupt(self, x_0: Int64[Tensor, "B D"], t: Float[Tensor, " B"], rng: Rng) -> Int64[Tensor, "B D"]:
        """x_t ~ q(x_t | x_0): each position that is not given masked with probability m(t)."""
        u_BD = uniform(rng, tuple(x_0.shape), x_0.device)
        u_BD[:, : self.given] = 1.0
        return torch.where(u_BD < self.schedule.mask_prob(t.double())[:, None], self.mask_id, x_0)

    def unknown(self, x_t: StateTensor) -> Bool[Tensor, "..."]:
        """The masked positions, of sequences those before `until`."""
        masked = x_t == self.mask_id
        return masked if self.until is None else masked & (torch.arange(x_t.shape[-1], device=x_t.device) < self.until)

    def prior(self, num_batch: int, num_positions: int, rng: Rng, device: torch.device) -> Int64[Tensor, "B D"]:
        """MASK everywhere; `rng` is not used."""
        return torch.full((num_batch, num_positions), self.mask_id, device=device)

    def revealed(self, x_t: StateTensor, t: TimeTensor, s: TimeTensor, u: UniformTensor) -> Bool[Tensor, "..."]:
        """Which masked positions become visible between t and s < t: those whose uniform is at least m(s) / m(t); at s = 0 all."""
        stay = self.schedule.mask_prob(s.double()) / self.schedule.mask_prob(t.double())
        return self.unknown(x_t) & ((u >= stay) | (s == 0))

    def bridge(self, x_t: StateTensor, x_0: StateTensor, t: TimeTensor, s: TimeTensor, u: UniformTensor) -> StateTensor:
        """x_s ~ q(x_s | x_0, x_t): what becomes visible is x_0, the rest stays as it is."""
        return torch.where(self.revealed(x_t, t, s, u), x_0, x_t)

    def reverse(
        self, x_t: Int64[Tensor, "B D"], predict: Predict, t: Float[Tensor, " B"], s: Float[Tensor, " B"], rng: Rng
    ) -> Int64[Tensor, "B D"]:
        """x_s ~ p(x_s | x_t) (Sahoo et al. 2024, Eq. 7): first which positions become visible, then x_0 at those alone.

        p(x_s = v | x_t = MASK) = (m(t) - m(s)) / m(t) p(x_0 = v | x_t) for a token v, m(s) / m(t) for MASK.
        """
        revealed_BD = self.revealed(x_t, t[:, None], s[:, None], uniform(rng, tuple(x_t.shape), x_t.device))
        return torch.where(revealed_BD, predict(x_t, t, revealed_BD, rng), x_t)

    def constrain(self, logits: Float[Tensor, "B D S"], x_t: Int64[Tensor, "B D"]) -> Float[Tensor, "B D S"]:
        """SUBS (Sahoo et al. 2024, section 3.2.3): normalised log-probabilities; MASK is impossible, a visible token certain."""
        states_S = torch.arange(logits.shape[-1], device=logits.device)
        log_p_BDS = (logits + torch.where(states_S == self.mask_id, NEVER, 0.0).to(logits.dtype)).log_softmax(-1)
        certain_BDS = torch.where(states_S == x_t[..., None], 0.0, NEVER).to(log_p_BDS.dtype)
        return torch.where((x_t == self.mask_id)[..., None], log_p_BDS, certain_BDS)


@section
class Times:
    """Distribution of t in (0, 1]: `uniform`, or `paper`: with probability 0.3 uniform on (0, δ], else on (δ, 1].

    A share `grid_share` is moved to the times of uniform grids of K steps, K uniform in `grid_steps`. Where the lowest time of a process
    is above 0, 0 stands for that.
    """

    distribution: Literal["uniform", "paper"] = setting(
        "uniform", "uniform, or paper: 30 % of the times below δ, as in Di4C's text run"
    )
    grid_share: float = setting(0.0, "share of the times t that are taken from the uniform grids of samplers")
    grid_steps: Ints = setting((1, 2, 4, 8, 16), "numbers of steps of these grids, all equally likely")

    def __post_init__(self) -> None:
        unit(self, "grid_share")
        steps = self.grid_steps
        check(len(steps) > 0 and min(steps) >= 1, "grid_steps", steps, "step counts of at least 1")

    def sample(
        self, num_examples: int, rng: Rng, *, delta: float = 0.0, device: torch.device | str = "cpu"
    ) -> Float[Tensor, " B"]:
        """One time an example."""
        return self.sample_steps(num_examples, rng, delta=delta, device=device)[0]

    def sample_steps(
        self, num_examples: int, rng: Rng, *, delta: float = 0.0, device: torch.device | str = "cpu"
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """(t, s), one pair an example: a step of its grid, and from a time that is of none to 0."""
        place_B, low_B, kind_B, grid_B = uniform(rng, (num_examples, 4), device).unbind(1)
        t_B = 1 - place_B
        if self.distribution == "paper":
            t_B = torch.where(low_B < _PAPER_LOW_SHARE, delta * t_B, delta + (1 - delta) * t_B)
        counts_K = torch.tensor(self.grid_steps, device=device)
        num_steps_B = counts_K[(low_B * len(counts_K)).long()]
        on_grid_B = ((grid_B * num_steps_B).floor() + 1) / num_steps_B
        is_grid_B = kind_B < self.grid_share
        t_B = torch.where(is_grid_B, on_grid_B, t_B)
        return t_B, torch.where(is_grid_B, t_B - 1 / num_steps_B, 0.0).clamp_min(0)


def above(t: Float[Tensor, " B"], floor: float | Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """`t` in (0, 1] moved to (floor, 1]."""
    return floor + (1 - floor) * t


def remaining(
    schedule: Schedule, num_B: Int64[Tensor, " B"], start: Float64[Tensor, "..."], s: Float64[Tensor, "..."]
) -> Int64[Tensor, " B"]:
    """How many of `num_B` positions masked at `start` are so at s: their expected number rounded down, none at s = 0."""
    share = schedule.mask_prob(s) / schedule.mask_prob(start)
    return torch.where(s == 0, 0, (num_B * share + 1e-9).floor().long())
