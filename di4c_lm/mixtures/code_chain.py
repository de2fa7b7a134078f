"""The law of a λ that is a string of codes, one a window of positions, as a Markov chain along the sequence.

Given λ the positions are independent; averaged over it they are a hidden Markov model, whose marginals and likelihood are exact. A
mixture of L products holds at most log L nats of mutual information between the sequence and λ; a chain of W windows up to W log L.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical

_LEAST = 1e-300  # below it a path is lost to float64; it keeps the logarithm of a path that cannot be finite


@dataclass(frozen=True)
class CodeChain:
    """p(z_1) Π_w p(z_w | z_{w-1}) for codes z_w < L of W windows of `window` positions each (the last may be shorter).

    `log_step[b, w, i, j]` is log p(z_w = j | z_{w-1} = i) of sequence b; at w = 0 it is the same for each i. All are normalised over j.
    With `period` the windows divide so many positions, and those behind them share their codes: the colours of an image's pixels.
    """

    log_step: Float[Tensor, "B W L L"]
    window: int
    period: int | None = None

    @property
    def num_windows(self) -> int:
        """W."""
        return self.log_step.shape[1]

    def window_of(self, position: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """The window that holds a position."""
        return (position if self.period is None else position % self.period) // self.window

    @cached_property
    def log_marginal(self) -> Float[Tensor, "B W L"]:
        """log p(z_w = j); computed once, one step a window."""
        step_BWLL = self.log_step.exp()
        law_BL = step_BWLL[:, 0, 0]
        laws = [law_BL]
        for step_BLL in step_BWLL[:, 1:].unbind(1):
            law_BL = torch.einsum("bi,bij->bj", law_BL, step_BLL)
            laws.append(law_BL)
        return torch.stack(laws, 1).clamp(min=torch.finfo(step_BWLL.dtype).tiny).log()

    def log_prob(self, log_emission: Float64[Tensor, "B W T L"]) -> Float64[Tensor, "B T"]:
        """log Σ_z p(z) Π_w e_w(z_w) for each of T observations, by the forward recursion in float64, scaled at every window."""
        step_BWLL = self.log_step.double().exp()
        top_BWT1 = log_emission.amax(3, keepdim=True).detach()
        emission_BWTL = (log_emission - top_BWT1).exp()
        forward_BTL = step_BWLL[:, 0, :1] * emission_BWTL[:, 0]
        totals = []
        for w in range(1, emission_BWTL.shape[1]):
            total_BT1 = forward_BTL.sum(2, keepdim=True).clamp(min=_LEAST)
            totals.append(total_BT1)
            forward_BTL = (forward_BTL / total_BT1) @ step_BWLL[:, w] * emission_BWTL[:, w]
        totals.append(forward_BTL.sum(2, keepdim=True).clamp(min=_LEAST))
        return (torch.stack(totals, 1).log() + top_BWT1).sum((1, 3))

    @torch.no_grad()
    def sample(self, u: Float64[Tensor, "B N W"]) -> Int64[Tensor, "B N W"]:
        """N strings of codes a sequence, each code by the inverse distribution function of one uniform."""
        step_BWLL = self.log_step.double().exp()
        row_B1 = torch.arange(len(u), device=u.device)[:, None]
        codes = [sample_categorical(step_BWLL[:, 0, 0], u[:, :, 0])]
        for w in range(1, u.shape[2]):
            law_BNL = step_BWLL[row_B1, w, codes[-1]]
            codes.append(sample_categorical(law_BNL.flatten(0, 1), u[:, :, w].flatten()).view(u.shape[:2]))
        return torch.stack(codes, 2)

    def rows(self, index: Int64[Tensor, " N"]) -> "CodeChain":
        """The chains of some sequences."""
        return CodeChain(self.log_step[index], self.window, self.period)
