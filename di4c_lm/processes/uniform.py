"""The uniform process of text: every position becomes, at the rate of a schedule, any of the states, each as likely as the others.

With α(t) = 1 - m(t) of the schedule, q(x_t = v | x_0) = α(t) [v = x_0] + (1 - α(t)) / S (Austin et al. 2021; Schiff et al. 2024; Duo,
Sahoo et al. 2025). No state says by itself that its position was changed.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.masked import LogLinear, Schedule
from di4c_lm.processes.process import Process, StateTensor, TimeTensor, UniformTensor
from di4c_lm.processes.rng import Rng, uniform

_LARGEST = 1 - 2.0**-53  # below 1: a share of a part of [0, 1), however it was rounded


@dataclass(frozen=True)
class UniformProcess(Process):
    """Uniform-state diffusion on `num_states` states."""

    num_states: int
    schedule: Schedule = field(default_factory=LogLinear)
    min_time: ClassVar[float] = 0.0  # networks are asked for x_0 at any time above it

    def kept(self, t: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """α(t), the probability that a position was not sampled anew; it may be sampled as it was."""
        return 1 - self.schedule.mask_prob(t.double())

    def log_odds(self, sigma: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """log q(x_t = v | x_0 = v) - log q(x_t = v | x_0 = w) for any other w, at total noise σ = -log α: log(1 + S / (e^σ - 1))."""
        return torch.log1p(self.num_states / torch.expm1(sigma.double()))

    def prior(self, num_batch: int, num_positions: int, rng: Rng, device: torch.device) -> Int64[Tensor, "B D"]:
        """x_1: each state as likely as the others."""
        return self._any_state(uniform(rng, (num_batch, num_positions), device))

    def corrupt(self, x_0: Int64[Tensor, "B D"], t: Float[Tensor, " B"], rng: Rng) -> Int64[Tensor, "B D"]:
        """x_t ~ q(x_t | x_0), one uniform a position: the share of it above α(t) says which state stands there then."""
        u_BD, kept_B1 = uniform(rng, tuple(x_0.shape), x_0.device), self.kept(t)[:, None]
        anew_BD = self._any_state((u_BD - kept_B1) / (1 - kept_B1).clamp_min(torch.finfo(torch.float64).tiny))
        return torch.where(u_BD < kept_B1, x_0, anew_BD)

    def unknown(self, x_t: StateTensor) -> Bool[Tensor, "..."]:
        """Everywhere: no token is certain."""
        return torch.ones_like(x_t, dtype=torch.bool)

    def bridge(self, x_t: StateTensor, x_0: StateTensor, t: TimeTensor, s: TimeTensor, u: UniformTensor) -> StateTensor:
        """x_s ~ q(x_s | x_0, x_t) in closed form: x_0, x_t, or any state; at s = 0 x_0 itself.

        q(x_s = v | x_0) q(x_t | x_s = v) = (α_s [v = x_0] + (1 - α_s) / S) (β [v = x_t] + (1 - β) / S) with β = α_t / α_s. Multiplied out
        and by S it is α_s (1 - β) at x_0, (1 - α_s) β at x_t, (1 - α_s) (1 - β) over all states, and S α_t at x_0 where x_t is the same.
        """
        kept_s = self.kept(s)
        beta = self.kept(t) / kept_s
        to_x_0 = kept_s * (1 - beta) + torch.where(x_0 == x_t, self.num_states * kept_s * beta, 0.0)
        to_x_t, to_any = (1 - kept_s) * beta, (1 - kept_s) * (1 - beta)
        target = u * (to_x_0 + to_x_t + to_any)
        anew = self._any_state((target - to_x_0 - to_x_t) / to_any.clamp_min(torch.finfo(torch.float64).tiny))
        return torch.where((target < to_x_0) | (s == 0), x_0, torch.where(target < to_x_0 + to_x_t, x_t, anew))

    def posterior(
        self, x_t: Int64[Tensor, " N"], p_0: Float[Tensor, "N S"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Float64[Tensor, "N S"]:
        """p(x_s | x_t) = Σ_v p_0(v) q(x_s | x_0 = v, x_t): that of `bridge` where x_0 ~ p_0."""
        size, kept_s = self.num_states, self.kept(s)
        beta = self.kept(t) / kept_s
        same_NS = torch.zeros_like(p_0, dtype=torch.float64).scatter_(1, x_t[:, None], 1.0)
        whole_NS = (1 - kept_s * beta) / size + kept_s * beta * same_NS  # q(x_t | x_0 = v)
        share_NS = p_0.double() / whole_NS
        low_NS = kept_s * share_NS + (1 - kept_s) / size * share_NS.sum(1, keepdim=True)
        return low_NS * (beta * same_NS + (1 - beta) / size)

    def _any_state(self, u: UniformTensor) -> StateTensor:
        """A state by a uniform; outside [0, 1), where it is not asked for, the first or the last."""
        return (u.clamp(0, _LARGEST) * self.num_states).long().clamp_max(self.num_states - 1)
