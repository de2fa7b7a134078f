"""The analytic (Tweedie) sampler of SEDD: the exact reverse step written with scores."""

from collections.abc import Iterator
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import section
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.ancestral import legacy_step
from di4c_lm.samplers.trajectory import Trajectory


@final
@section
class Analytic:
    """Tweedie τ-leaping (Lou et al. 2024, Theorem 4.2): (exp(-Δσ Q) score)(v) exp(Δσ Q)(x_t, v), with Δσ = σ(t) - σ(s).

    These probabilities are those of the ancestral step, so exact samples are made the same way. With `noise=legacy_fp32` they are the
    published float32 expression, cancellation included, sampled with the published noise, and the network gets t = 0 as there.
    """

    needs: ClassVar[type] = object

    def steps(self, trajectory: Trajectory, x: Int64[Tensor, "B D"]) -> Iterator[Int64[Tensor, "B D"]]:
        """One state an interval."""
        for t, s in trajectory.intervals():
            x = self.step(trajectory, x, t, s)
            yield x

    def step(
        self, trajectory: Trajectory, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """x_s, with the noise that `trajectory.decoding` names."""
        if trajectory.legacy:
            return legacy_step(trajectory, x, t, s, tweedie_weights, network_time=torch.zeros_like(t))
        return trajectory.reverse(x, t, s)


def tweedie_weights(
    log_p_NS: Float[Tensor, "N S"], process: MaskedProcess, t: Float[Tensor, ""], s: Float[Tensor, ""]
) -> Float[Tensor, "N S"]:
    """(exp(-Δσ Q) score)(v) exp(Δσ Q)(MASK, v) of a masked position, in float32.

    The score of a token is p / (e^σ(t) - 1), that of MASK is 1. In exact arithmetic this is `posterior_weights` / m(t).
    """
    sigma_t, sigma_s = (-torch.log1p(-process.schedule.mask_prob(time.float())) for time in (t, s))
    ds = sigma_t - sigma_s
    score_NS = (log_p_NS - torch.log(torch.expm1(sigma_t))).exp()
    score_NS[:, process.mask_id] = 1
    staggered_NS = ds.exp() * score_NS
    staggered_NS[:, process.mask_id] += (1 - ds.exp()) * score_NS.sum(1)
    weights_NS = staggered_NS * (1 - (-ds).exp())
    weights_NS[:, process.mask_id] += staggered_NS[:, process.mask_id] * (-ds).exp()
    return weights_NS
