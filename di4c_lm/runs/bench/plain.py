"""Di4C's training step and sampling as the published code takes them: everything of shape (B·L, D, S) held, all noise in float32."""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from di4c_lm.mixtures.base import Latents
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.runs.bench.measure import Stopwatch
from di4c_lm.samplers.grids import published_grid

_EPS = 1e-9


def logits(network: nn.Module, x_ND: Tensor, t: float, lam: Tensor | None) -> Tensor:
    """At every position and state, (N, D, S)."""
    latents = None if lam is None else Latents(lam)
    prediction = network(x_ND, torch.full((len(x_ND),), t, device=x_ND.device), latents)
    positions = torch.arange(x_ND.shape[1], device=x_ND.device).repeat(len(x_ND))
    return prediction.output_head.logits(prediction.features.flatten(0, 2), positions).view(*x_ND.shape, -1)


def uniform_lambdas(num_rows: int, device: torch.device) -> Tensor:
    """One scalar λ a row, (N, 1, 1)."""
    return torch.rand(num_rows, device=device)[:, None, None]


def mixture_loss(
    log_p_NDS: Tensor, target_NDS: Tensor, teacher_BDS: Tensor, x_0: Tensor, data_weight: Tensor
) -> Tensor:
    """The data and consistency terms, averaged over the batch, from log-probabilities of the student at x_t and x_u and the teacher."""
    num_batch, num_lambdas = len(x_0), len(log_p_NDS) // len(x_0)
    samples_ND = torch.distributions.Categorical(logits=target_NDS).sample()
    log_p_BLDS = log_p_NDS.unflatten(0, (num_batch, num_lambdas))
    log_mean_BDS = log_p_BLDS.logsumexp(1) - math.log(num_lambdas)
    target_BDS = target_NDS.unflatten(0, (num_batch, num_lambdas)).logsumexp(1) - math.log(num_lambdas)

    def correlation(x_BD: Tensor) -> Tensor:
        index = x_BD[:, None, :, None].expand(-1, num_lambdas, -1, 1)
        joint_B = log_p_BLDS.gather(3, index).squeeze(3).sum(2).logsumexp(1) - math.log(num_lambdas)
        return log_mean_BDS.gather(2, x_BD[..., None]).squeeze(2).sum(1) - joint_B

    def divergence(log_q_BDS: Tensor) -> Tensor:
        return F.kl_div(log_mean_BDS, log_q_BDS, log_target=True, reduction="none").sum((1, 2))

    data_B = data_weight * correlation(x_0) + divergence(teacher_BDS)
    columns = samples_ND.unflatten(0, (num_batch, num_lambdas)).unbind(1)
    consistency_B = sum(correlation(x_BD) for x_BD in columns) / num_lambdas + divergence(target_BDS)
    return (data_B + consistency_B).mean()


def text_loss(
    student: Any,
    teacher: Any,
    process: MaskedProcess,
    x_0: Tensor,
    x_t: Tensor,
    times: tuple[float, float],
    num_lambdas: int,
    watch: Stopwatch,
) -> Tensor:
    """The data and consistency terms at (t, u) with sigmoid weight 0.1; the teacher is run on L copies of x_t."""
    (t, u), rows_ND = times, x_t.repeat_interleave(num_lambdas, 0)
    with torch.no_grad():
        watch.start("teacher sampling")
        log_p_NDS = process.constrain(logits(teacher, rows_ND, t, None), rows_ND)
        teacher_BDS = log_p_NDS[::num_lambdas].clone()
        x_u = torch.where(rows_ND == process.mask_id, _gumbel_sample(_weights(process, log_p_NDS, t, u)), rows_ND)
        del log_p_NDS
        watch.start("student on x_u")
        target_NDS = process.constrain(logits(student, x_u, t, uniform_lambdas(len(x_u), x_0.device)), x_u)
    watch.start("student on x_t")
    log_p_NDS = process.constrain(logits(student, rows_ND, t, uniform_lambdas(len(x_u), x_0.device)), rows_ND)
    watch.start("loss")
    weight = 0.1 * torch.sigmoid(torch.tensor(20 * (t - 0.5), device=x_0.device))
    target_NDS, log_p_NDS, teacher_BDS = (part.log_softmax(-1) for part in (target_NDS, log_p_NDS, teacher_BDS))
    return mixture_loss(log_p_NDS, target_NDS, teacher_BDS, x_0, weight)


def image_loss(
    student: Any,
    teacher: Any,
    chain: GaussianChain,
    x_0: Tensor,
    x_t: Tensor,
    times: tuple[float, float],
    num_lambdas: int,
    watch: Stopwatch,
) -> Tensor:
    """The data, consistency and distillation terms at (t, u) on tauLDR's chain, averaged over the batch."""
    (t, u), device = times, x_0.device
    rows_ND, lam = x_t.repeat_interleave(num_lambdas, 0), uniform_lambdas(len(x_t) * num_lambdas, device)
    with torch.no_grad():
        watch.start("teacher sampling")
        teacher_BDS = logits(teacher, x_t, t, None).log_softmax(-1)
        x_u = _step_down(chain, teacher_BDS.repeat_interleave(num_lambdas, 0), rows_ND, t, u)
        watch.start("student on x_u")
        target_NDS = logits(student, x_u, u, torch.rand_like(lam)).log_softmax(-1)
    watch.start("student on x_t")
    log_p_NDS = logits(student, rows_ND, t, lam).log_softmax(-1)
    watch.start("distillation")
    low_N = torch.full((len(rows_ND),), chain.min_time, dtype=torch.float64, device=device)
    x_low = chain.corrupt(x_0.repeat_interleave(num_lambdas, 0), low_N, torch.Generator().manual_seed(0))
    with torch.no_grad():
        own_target_NDS = logits(teacher, x_low, chain.min_time, None).log_softmax(-1)
    own_NDS = logits(student, x_low, chain.min_time, lam).log_softmax(-1)
    distil = F.kl_div(own_NDS, own_target_NDS, log_target=True, reduction="sum") / len(rows_ND)
    watch.start("loss")
    weight = torch.sigmoid(torch.tensor(20 * (t - 0.5), device=device))
    return mixture_loss(log_p_NDS, target_NDS, teacher_BDS, x_0, weight) + distil


@torch.no_grad()
def sample_text(network: Any, process: MaskedProcess, x: Tensor, steps: int) -> Tensor:
    """The loop of MDLM, SDTT and Di4C, ended by an argmax where MASK is left."""
    times = published_grid(steps)

    def weights(t: float, s: float) -> Tensor:
        lam = network.sample_latents(len(x), 1, torch.default_generator, x.device)
        value = None if lam is None else lam.value
        return _weights(process, process.constrain(logits(network, x, t, value), x), t, s)

    for t, s in pairwise(times[:-1].tolist()):
        x = torch.where(x == process.mask_id, _gumbel_sample(weights(t, s)), x)
    if bool((x == process.mask_id).any()):
        x = torch.where(x == process.mask_id, weights(float(times[-2]), 0.0).argmax(-1), x)
    return x


def _weights(process: MaskedProcess, log_p_BDS: Tensor, t: float, s: float) -> Tensor:
    """The posterior at s of a masked position, not normalised."""
    m_t, m_s = (float(process.schedule.mask_prob(torch.tensor(time))) for time in (t, s))
    q_BDS = log_p_BDS.exp() * (m_t - m_s)
    q_BDS[..., process.mask_id] = m_s
    return q_BDS


def _gumbel_sample(p_NDS: Tensor) -> Tensor:
    """Float32 exponential noise on every state."""
    return (p_NDS / (1e-10 - (torch.rand_like(p_NDS) + 1e-10).log())).argmax(-1)


def _step_down(chain: GaussianChain, log_p_NDS: Tensor, x_t: Tensor, t: float, u: float) -> Tensor:
    """x_u from the posterior's distribution over all levels."""
    times = torch.tensor([t, u], device=x_t.device, dtype=torch.float64)
    whole_SS, low_SS = (matrix.float() + _EPS for matrix in chain.transition(times))
    high_SS = chain.transition(times[0], times[1]).float() + _EPS
    q_NDS = (log_p_NDS.exp() / whole_SS.T[x_t]) @ low_SS * high_SS.T[x_t]
    return torch.distributions.Categorical(probs=q_NDS).sample()
