"""Ancestral sampling of masked diffusion: the exact reverse step for a product given λ, down a time grid."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical_fp32
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import Rng
from di4c_lm.samplers.draw import single_precision_uniform
from di4c_lm.samplers.walk import Walk

# log p(x_0 | x_t) of masked places, the process, t and s to unnormalised probabilities of x_s, MASK among them.
Posterior = Callable[[Tensor, MaskedProcess, Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """x_s ~ p(x_s | x_t) (Sahoo et al. 2024, Eq. 7; with a λ a call, Hayakawa et al. 2025).

    A step first chooses which positions become visible, each with probability 1 - m(s)/m(t), then draws and reads out those alone.
    `greedy_end` takes the likeliest tokens in the step to 0, as the published loop does with the few that are left at t = 1e-5.
    """

    greedy_end: bool = False

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """One state an interval."""
        for t, s in pairwise(times):
            x = reverse_step(walk, x, t, s, greedy=self.greedy_end and bool(s == 0))
            yield x


def reverse_step(
    walk: Walk, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""], *, greedy: bool = False
) -> Int64[Tensor, "B D"]:
    """One ancestral step, with the noise that `walk.draw` names."""
    if walk.draw.noise == "legacy_fp32" and not greedy:
        return legacy_step(walk, x, t, s, posterior_weights, network_time=t)

    def predict(x: Tensor, t_B: Tensor, where_BD: Tensor, rng: Rng) -> Tensor:
        return walk.draw_at(x, t_B, where_BD, greedy=greedy)

    return walk.process.reverse(x, predict, walk.every(t), walk.every(s), walk.rng)


def posterior_weights(
    log_p_NS: Float[Tensor, "N S"], process: MaskedProcess, t: Float64[Tensor, ""], s: Float64[Tensor, ""]
) -> Float[Tensor, "N S"]:
    """p(x_0 = v)(m(t) - m(s)) for a token, m(s) for MASK: m(t) times the posterior of a masked place (Sahoo et al. 2024, Eq. 7)."""
    m_t, m_s = process.schedule.mask_prob(t), process.schedule.mask_prob(s)
    q_NS = log_p_NS.exp() * float(m_t - m_s)
    q_NS[:, process.mask_id] = float(m_s)
    return q_NS


def legacy_step(
    walk: Walk,
    x: Int64[Tensor, "B D"],
    t: Float64[Tensor, ""],
    s: Float64[Tensor, ""],
    posterior: Posterior,
    *,
    network_time: Float64[Tensor, ""],
) -> Int64[Tensor, "B D"]:
    """The published step: float32 exponential noise over tokens and MASK at every masked place, one position of all sequences at a time."""
    masked_BD = walk.masked(x)
    lam = walk.calls.latents(len(x), walk.rng, x.device)
    run_R = masked_BD.any(1).nonzero().squeeze(1)
    if len(run_R) == 0:
        return x
    call = walk.calls(x, walk.every(network_time), lam, run_R)
    place_B = masked_BD.any(1).cumsum(0) - 1
    num_states = call.conditional.output_head.num_states
    x_s = x.clone()
    for position in range(x.shape[1]):
        u_BS = single_precision_uniform(walk.rng, (len(x), num_states), x.device)
        row_N = masked_BD[:, position].nonzero().squeeze(1)
        if len(row_N):
            log_p_NS = walk.log_probs(call, place_B[row_N], torch.full_like(row_N, position))
            x_s[row_N, position] = sample_categorical_fp32(posterior(log_p_NS, walk.process, t, s), u_BS[row_N])
    return x_s
