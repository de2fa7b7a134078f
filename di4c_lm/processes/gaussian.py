"""tauLDR's continuous-time chain on ordered levels, with a discretised Gaussian as stationary distribution (Campbell et al. 2022, 5.2).

With R its rate matrix and β(t) = a b^t - a, q(x_t | x_s) = exp((β(t) - β(s)) R). R is in detailed balance with the stationary π, so
that diag(√π) R diag(1/√π) is symmetric, and one eigendecomposition in float64 gives the exact transition between any two times.
"""

import functools
import math
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import at_least, check, positive, section, setting
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.process import Process, StateTensor, TimeTensor, UniformTensor
from di4c_lm.processes.rng import Rng, uniform

_LEAST = 1e-20  # of a transition: what rounding leaves of a smaller one means nothing, and 0 would make some bridges impossible
_RATIO_EPS = 1e-9  # added to the transitions that rates are divided by, as published
_HELD = 2**22  # probabilities gathered at once


class _Spectrum(NamedTuple):
    rate_SS: Float64[Tensor, "S S"]
    values_S: Float64[Tensor, " S"]
    left_SS: Float64[Tensor, "S S"]  # diag(1/√π) U
    right_SS: Float64[Tensor, "S S"]  # Uᵀ diag(√π)
    stationary_S: Float64[Tensor, " S"]


@final
@section
class GaussianChain(Process):
    """Each position jumps between levels by itself, by rates whose target is a Gaussian; the defaults are tauLDR's for CIFAR-10."""

    num_states: int = setting(256, "levels, S")
    rate_sigma: float = setting(6.0, "standard deviation of the length of a jump, in levels")
    q_sigma: float = setting(512.0, "standard deviation of the stationary distribution, in levels")
    time_base: float = setting(3.0, "a in the rate β(t) = a b^t - a")
    time_exponential: float = setting(100.0, "b in the rate β(t) = a b^t - a")
    min_time: float = setting(0.01, "lowest time at which a network is called")

    def __post_init__(self) -> None:
        at_least(self, 2, "num_states")
        positive(self, "rate_sigma", "q_sigma", "time_base")
        check(self.time_exponential > 1, "time_exponential", self.time_exponential, "above 1")
        check(0 <= self.min_time < 1, "min_time", self.min_time, "in [0, 1)")

    def rate_matrix(self, device: torch.device | str = "cpu") -> Float64[Tensor, "S S"]:
        """R: from the row's state to the column's; its rows sum to 0."""
        return self._spectrum(device).rate_SS

    def stationary(self, device: torch.device | str = "cpu") -> Float64[Tensor, " S"]:
        """π_k ~ exp(-(k + 1 - S/2)² / 2 q_sigma²): the distribution of x_1, from which sampling begins."""
        return self._spectrum(device).stationary_S

    def integral(self, t: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """β(t), the integral of the rate from 0 to t."""
        return self.time_base * (self.time_exponential ** t.double() - 1)

    def rate(self, t: Float[Tensor, "..."]) -> Float64[Tensor, "..."]:
        """β'(t)."""
        return self.time_base * math.log(self.time_exponential) * self.time_exponential ** t.double()

    def transition(self, t: Float[Tensor, "*K"], s: Float[Tensor, "*K"] | None = None) -> Float64[Tensor, "*K S S"]:
        """q(x_t = column | x_s = row) for s <= t (absent: 0), one matrix a time; rows sum to 1."""
        spectrum = self._spectrum(t.device)
        span = self.integral(t) - (0 if s is None else self.integral(s))
        decay = (span[..., None] * spectrum.values_S).exp()
        q = ((spectrum.left_SS * decay[..., None, :]) @ spectrum.right_SS).clamp_min(_LEAST)
        return q / q.sum(-1, keepdim=True)

    def prior(self, num_batch: int, num_positions: int, rng: Rng, device: torch.device) -> Int64[Tensor, "B D"]:
        """x_1 from π."""
        u_BD = uniform(rng, (num_batch, num_positions), device)
        return sample_categorical(self.stationary(device)[None], u_BD.view(1, -1)).view_as(u_BD)

    def corrupt(self, x_0: Int64[Tensor, "B D"], t: Float[Tensor, " B"], rng: Rng) -> Int64[Tensor, "B D"]:
        """x_t ~ q(x_t | x_0)."""
        u_BD = uniform(rng, tuple(x_0.shape), x_0.device)
        x_t = torch.empty_like(x_0)
        at_once = max(1, _HELD // max(1, self.num_states * max(x_0.shape[1], self.num_states)))
        for rows in torch.arange(len(x_0), device=x_0.device).split(at_once):
            q_CSS = self.transition(t[rows])
            q_NS = q_CSS[torch.arange(len(rows), device=x_0.device)[:, None], x_0[rows]].flatten(0, 1)
            x_t[rows] = sample_categorical(q_NS, u_BD[rows].flatten()).view(len(rows), -1)
        return x_t

    def unknown(self, x_t: StateTensor) -> Bool[Tensor, "..."]:
        """Everywhere: no level is certain."""
        return torch.ones_like(x_t, dtype=torch.bool)

    def bridge(self, x_t: StateTensor, x_0: StateTensor, t: TimeTensor, s: TimeTensor, u: UniformTensor) -> StateTensor:
        """x_s ~ q(x_s | x_0, x_t), which is q(x_s | x_0) q(x_t | x_s) normalised; at s = 0 x_0 itself."""
        if not bool((s > 0).any()):
            return x_0
        t_K, s_K, pair_N = _distinct_pairs(t.flatten(), s.flatten())
        low_KSS = self.transition(s_K)
        high_KSS = self.transition(t_K, s_K).transpose(1, 2)
        x_t_N, x_0_N, u_N = x_t.flatten(), x_0.flatten(), u.flatten()
        x_s_N = torch.empty_like(x_0_N)
        for rows in torch.arange(len(u_N), device=u.device).split(max(1, _HELD // self.num_states)):
            pair_C = pair_N[rows]
            weights_CS = low_KSS[pair_C, x_0_N[rows]] * high_KSS[pair_C, x_t_N[rows]]
            x_s_N[rows] = sample_categorical(weights_CS, u_N[rows])
        return x_s_N.view(x_0.shape)

    def posterior(
        self, x_t: Int64[Tensor, " N"], p_0: Float[Tensor, "N S"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Float64[Tensor, "N S"]:
        """p(x_s | x_t) = Σ_v p_0(v) q(x_s | x_0 = v, x_t): that of `bridge` where x_0 ~ p_0."""
        low_SS, high_SS = self.transition(s), self.transition(t, s)
        whole_NS = (low_SS @ high_SS).T[x_t]
        return (p_0.double() / whole_NS) @ low_SS * high_SS.T[x_t]

    def reverse_rates(
        self, x_t: Int64[Tensor, " N"], p_0: Float[Tensor, "N S"], t: Float64[Tensor, ""]
    ) -> Float64[Tensor, "N S"]:
        """Rates at time t, backwards, from `x_t` to each other level (0 to itself; Campbell et al. 2022, proposition 1).

        R(y, x) β'(t) Σ_v p_0(v) q(y | x_0 = v) / q(x | x_0 = v).
        """
        q_SS = self.transition(t)
        ratio_NS = (p_0.double() / (q_SS.T[x_t] + _RATIO_EPS)) @ q_SS
        return self._away(ratio_NS * self.rate_matrix(x_t.device).T[x_t] * self.rate(t), x_t)

    def forward_rates(self, x_t: Int64[Tensor, " N"], t: Float64[Tensor, ""]) -> Float64[Tensor, "N S"]:
        """Rates at time t from `x_t` to each other level (0 to itself)."""
        return self._away(self.rate_matrix(x_t.device)[x_t] * self.rate(t), x_t)

    @staticmethod
    def _away(rates_NS: Float64[Tensor, "N S"], x_t: Int64[Tensor, " N"]) -> Float64[Tensor, "N S"]:
        return rates_NS.scatter(1, x_t[:, None], 0.0)

    def _spectrum(self, device: torch.device | str) -> _Spectrum:
        return _spectrum(self.num_states, self.rate_sigma, self.q_sigma, str(device))


@functools.lru_cache(maxsize=16)
def _spectrum(num_states: int, rate_sigma: float, q_sigma: float, device: str) -> _Spectrum:
    state_S = torch.arange(num_states, dtype=torch.float64)
    stationary_S = (-((state_S + 1 - num_states / 2) ** 2) / (2 * q_sigma**2)).softmax(0)
    from_S1, to_1S = state_S[:, None], state_S[None]
    from_below = (from_S1 < num_states / 2) & (from_S1 < to_1S) & (to_1S < num_states - from_S1)
    from_above = (from_S1 > num_states / 2) & (num_states - 1 - from_S1 < to_1S) & (to_1S < from_S1)
    by_length = (-(((from_S1 - to_1S).abs() - 1) ** 2) / rate_sigma**2).exp()
    inward_SS = torch.where(from_below | from_above, by_length, 0.0)
    outward_SS = inward_SS.T * stationary_S / stationary_S[:, None]
    rate_SS = inward_SS + outward_SS
    rate_SS = rate_SS - rate_SS.sum(1).diag()
    root_S = stationary_S.sqrt()
    symmetric_SS = rate_SS * root_S[:, None] / root_S
    values_S, vectors_SS = torch.linalg.eigh((symmetric_SS + symmetric_SS.T) / 2)
    found = _Spectrum(rate_SS, values_S.clamp_max(0), vectors_SS / root_S[:, None], vectors_SS.T * root_S, stationary_S)
    return _Spectrum(*(tensor.to(device) for tensor in found))


def _distinct_pairs(
    t_N: Float[Tensor, " N"], s_N: Float[Tensor, " N"]
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"], Int64[Tensor, " N"]]:
    """The K distinct pairs of times, and which of them each row has."""
    t_I, t_of_N = t_N.unique(return_inverse=True)
    s_J, s_of_N = s_N.unique(return_inverse=True)
    code_K, pair_N = (t_of_N * max(1, len(s_J)) + s_of_N).unique(return_inverse=True)
    return t_I[code_K // max(1, len(s_J))], s_J[code_K % max(1, len(s_J))], pair_N
