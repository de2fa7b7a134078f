"""Remasking: a reverse step that may hide visible tokens again, and so corrects them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final, get_args

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.samplers.walk import Walk

Remasking = Literal["cap", "rescale"]


@final
@dataclass(frozen=True, kw_only=True)
class ReMDM:
    """Wang et al. 2025, section 4: a visible token is masked again with probability sigma, a masked one becomes visible with probability
    1 - (m(s) - sigma (1 - m(t))) / m(t), which leaves the marginal law of x_s as it was.

    sigma is at most sigma_max = min(1, m(s) / (1 - m(t))). `schedule`: `cap`, sigma = min(eta, sigma_max), or `rescale`,
    sigma = eta sigma_max. At s = 0 nothing is masked. Given tokens are never masked.
    """

    schedule: Remasking = "cap"
    eta: float = 0.02

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Remasking):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Remasking))}, got {self.schedule!r}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {self.eta}")

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """One state an interval."""
        for t, s in pairwise(times):
            m_t, m_s = walk.mask_prob(t), walk.mask_prob(s)
            sigma = self._sigma(float(m_t), float(m_s))
            stay = (m_s - sigma * (1 - m_t)) / m_t
            u_BD = walk.uniform(tuple(x.shape))
            masked_BD = walk.masked(x)
            revealed_BD = masked_BD if s == 0 else masked_BD & (u_BD >= stay)
            hidden_BD = ~masked_BD & ~walk.fixed_BD & (u_BD < sigma)
            x = walk.draw_at(x, walk.every(t), revealed_BD)
            x = torch.where(hidden_BD, walk.process.mask_id, x)
            yield x

    def _sigma(self, m_t: float, m_s: float) -> float:
        most = min(1.0, m_s / (1 - m_t)) if m_t < 1 else 1.0
        return min(self.eta, most) if self.schedule == "cap" else self.eta * most
