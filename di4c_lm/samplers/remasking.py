"""Remasking: a reverse step that may hide visible tokens again, and so corrects them."""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import section, setting, unit
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.trajectory import StepByStep, Trajectory


@final
@section
class Remasking(StepByStep):
    """ReMDM: ancestral steps in which a visible token may be masked again, and so corrected (Wang et al. 2025).

    Section 4 there: a visible token is masked again with probability σ, and a masked one becomes visible with probability 1 - (m(s) - σ
    (1 - m(t))) / m(t), which leaves the marginal distribution of x_s as it was. σ is at most σ_max = min(1, m(s) / (1 - m(t))).
    `schedule`: `cap`, σ = min(eta, σ_max), or `rescale`, σ = eta σ_max. At s = 0 nothing is masked. Given tokens are never masked.
    """

    needs: ClassVar[type] = MaskedProcess
    schedule: Literal["cap", "rescale"] = setting(
        "cap", "how σ is set; cap: eta, at most σ_max; rescale: eta times σ_max"
    )
    eta: float = setting(0.02, "strength of remasking: see sampler.schedule")

    def __post_init__(self) -> None:
        unit(self, "eta")

    def step(
        self, trajectory: Trajectory, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """See `StepByStep.step`."""
        process = trajectory.needs(MaskedProcess)
        m_t, m_s = process.schedule.mask_prob(t), process.schedule.mask_prob(s)
        sigma = self._sigma(float(m_t), float(m_s))
        stay = (m_s - sigma * (1 - m_t)) / m_t
        u_BD, masked_BD = trajectory.uniform(), process.unknown(x)
        revealed_BD = masked_BD & ((u_BD >= stay) | (s == 0))
        hidden_BD = ~masked_BD & ~trajectory.fixed_BD & (u_BD < sigma)
        return torch.where(hidden_BD, process.mask_id, trajectory.predict(x, trajectory.every(t), revealed_BD))

    def _sigma(self, m_t: float, m_s: float) -> float:
        most = min(1.0, m_s / (1 - m_t)) if m_t < 1 else 1.0
        return min(self.eta, most) if self.schedule == "cap" else self.eta * most
