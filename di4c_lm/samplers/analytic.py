"""The analytic (Tweedie) sampler of SEDD: the exact reverse step written with scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.ancestral import legacy_step, reverse_step
from di4c_lm.samplers.walk import Walk


@final
@dataclass(frozen=True)
class Analytic:
    """Tweedie tau-leaping (Lou et al. 2024, Theorem 4.2).

    For the absorbing process its probabilities are those of the ancestral step, so exact draws are made the same way. With
    `noise=legacy_fp32` they are the published float32 expression, cancellation included, drawn with the published noise, and the network
    is told t = 0 as there.
    """

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """One state an interval."""
        for t, s in pairwise(times):
            if walk.draw.noise == "legacy_fp32":
                x = legacy_step(walk, x, t, s, tweedie_weights, network_time=torch.zeros_like(t))
            else:
                x = reverse_step(walk, x, t, s)
            yield x


def tweedie_weights(
    log_p_NS: Float[Tensor, "N S"], process: MaskedProcess, t: Float[Tensor, ""], s: Float[Tensor, ""]
) -> Float[Tensor, "N S"]:
    """(exp(-ds Q) score)(v) exp(ds Q)(MASK, v) of a masked place, in float32, with ds = sigma(t) - sigma(s).

    The score of a token is p / (e^sigma - 1), that of MASK is 1. In exact arithmetic this is `posterior_weights` / m(t).
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
