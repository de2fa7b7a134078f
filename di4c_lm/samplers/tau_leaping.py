"""τ-leaping of chains on ordered levels: jumps at the rates of one time, added up."""

from typing import ClassVar, final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import section
from di4c_lm.processes.categorical import sample_poisson
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.samplers.trajectory import StepByStep, Trajectory


@final
@section
class TauLeaping(StepByStep):
    """Jumps between levels at the rates of the step's first time, for tauLDR's chain on pixels (Campbell et al. 2022).

    Section 4.3 there: x_s = x_t + Σ_y (y - x_t) P_y with P_y ~ Poisson((t - s) R_t(x_t, y)), kept within the levels. R_t are the
    reverse rates at time t given the prediction of x_0. In the step to 0 x_0 itself is sampled.
    """

    needs: ClassVar[type] = GaussianChain

    def step(
        self, trajectory: Trajectory, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """x_s."""
        if s == 0:
            return trajectory.reverse(x, t, s)
        chain = trajectory.needs(GaussianChain)
        p_0_NS = trajectory.distribution(x, t).flatten(0, 1)
        return leap(trajectory, x, chain.reverse_rates(x.flatten(), p_0_NS, t), t - s)


def leap(
    trajectory: Trajectory, x: Int64[Tensor, "B D"], rates_NS: Float64[Tensor, "N S"], span: Float64[Tensor, ""]
) -> Int64[Tensor, "B D"]:
    """Jumps to each level at these rates for `span`, one Poisson number each, added up and kept within the levels."""
    num_states = rates_NS.shape[1]
    jumps_NS = sample_poisson(rates_NS * span, trajectory.uniform(num_states).flatten(0, 1))
    state_S = torch.arange(num_states, device=x.device)
    moved_N = (jumps_NS * (state_S - x.flatten()[:, None])).sum(1)
    return (x + moved_N.view_as(x)).clamp(0, num_states - 1)
