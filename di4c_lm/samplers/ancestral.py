"""The exact reverse step for a product given λ: ancestral sampling, and the analytic (Tweedie) sampler of SEDD in scores."""

from collections.abc import Callable
from typing import ClassVar, final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import section
from di4c_lm.processes.categorical import sample_categorical_fp32
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import Rng, uniform
from di4c_lm.samplers.trajectory import StepByStep, Trajectory

# log p(x_0 | x_t) of masked positions, the process, t and s to unnormalised probabilities of x_s, MASK among them.
Posterior = Callable[[Tensor, MaskedProcess, Tensor, Tensor], Tensor]


@final
@section
class Ancestral(StepByStep):
    """The exact reverse step at each time of the grid, with a new λ for each network call.

    x_s ~ p(x_s | x_t) = Σ q(x_s | x_0, x_t) p(x_0 | x_t; λ) (Hayakawa et al. 2025). Of a masked process (Sahoo et al. 2024, Eq. 7) a
    step first chooses which positions become visible, each with probability 1 - m(s)/m(t), then samples those alone; of a chain on
    levels it samples x_0 everywhere, then x_s from the bridge.
    """

    needs: ClassVar[type] = object

    def step(
        self, trajectory: Trajectory, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """x_s, with the noise that `trajectory.decoding` names."""
        if trajectory.legacy:
            return legacy_step(trajectory, x, t, s, posterior_weights, network_time=t)
        return trajectory.reverse(x, t, s)


@final
@section
class Analytic(StepByStep):
    """Tweedie τ-leaping (Lou et al. 2024): the same distribution as ancestral, by the formula of the score.

    Theorem 4.2 there: (exp(-Δσ Q) score)(v) exp(Δσ Q)(x_t, v), with Δσ = σ(t) - σ(s). These probabilities are those of the ancestral
    step, so exact samples are made the same way. With `noise=legacy_fp32` they are the published float32 expression, cancellation
    included, sampled with the published noise, and the network gets t = 0 as there.
    """

    needs: ClassVar[type] = object

    def step(
        self, trajectory: Trajectory, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """x_s, with the noise that `trajectory.decoding` names."""
        if trajectory.legacy:
            return legacy_step(trajectory, x, t, s, tweedie_weights, network_time=torch.zeros_like(t))
        return trajectory.reverse(x, t, s)


def posterior_weights(
    log_p_NS: Float[Tensor, "N S"], process: MaskedProcess, t: Float64[Tensor, ""], s: Float64[Tensor, ""]
) -> Float[Tensor, "N S"]:
    """p(x_0 = v)(m(t) - m(s)) for a token, m(s) for MASK: m(t) times the posterior of a masked position (Sahoo et al. 2024, Eq. 7)."""
    m_t, m_s = process.schedule.mask_prob(t), process.schedule.mask_prob(s)
    q_NS = log_p_NS.exp() * float(m_t - m_s)
    q_NS[:, process.mask_id] = float(m_s)
    return q_NS


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


def legacy_step(
    trajectory: Trajectory,
    x: Int64[Tensor, "B D"],
    t: Float64[Tensor, ""],
    s: Float64[Tensor, ""],
    posterior: Posterior,
    *,
    network_time: Float64[Tensor, ""],
) -> Int64[Tensor, "B D"]:
    """The published step: float32 exponential noise over tokens and MASK at every masked position, one of all sequences at a time."""
    process = trajectory.needs(MaskedProcess)
    masked_BD = process.unknown(x)
    call = trajectory.call(x, trajectory.every(network_time), masked_BD.any(1))
    if call is None:
        return x
    if not call.conditional.is_product:
        raise ValueError(
            "decoding.noise must be exact for a mixture whose positions are sampled in order, got legacy_fp32"
        )
    num_states, temperature = call.conditional.output_head.num_states, trajectory.decoding.temperature
    x_s = x.clone()
    for position in range(x.shape[1]):
        u_BS = single_precision_uniform(trajectory.rng, (len(x), num_states), x.device)
        row_N = masked_BD[:, position].nonzero().squeeze(1)
        if len(row_N):
            logits_NS = call.logits(row_N, torch.full_like(row_N, position))
            log_p_NS = (logits_NS / temperature).log_softmax(1)
            q_NS = posterior(log_p_NS, process, t, s)
            x_s[row_N, position] = state_N = sample_categorical_fp32(q_NS, u_BS[row_N])
            if trajectory.log_p_BD is not None:
                trajectory.log_p_BD[row_N, position] = log_p_NS.gather(1, state_N[:, None])[:, 0].double()
    return x_s


def single_precision_uniform(rng: Rng, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "..."]:
    """Float32 uniforms on multiples of 2^-24 in [0, 1), as `torch.rand` gives them."""
    return ((uniform(rng, shape, device) * 2**24).floor() * 2.0**-24).float()
