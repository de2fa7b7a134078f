"""Ancestral sampling as the published code does it: logits, softmax and float32 noise over all of (B, D, S) in every step."""

from itertools import pairwise

import torch
from torch import Tensor

from di4c_lm.networks.dit import DIT
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.grids import published_grid


@torch.no_grad()
def sample(network: DIT, process: MaskedProcess, x: Tensor, steps: int) -> Tensor:
    """The loop of MDLM, SDTT and Di4C, ended by an argmax where MASK is left."""
    times = published_grid(steps)
    for t, s in pairwise(times[:-1].tolist()):
        q_BDS = _posterior(network, process, x, t, s)
        noise_BDS = 1e-10 - (torch.rand_like(q_BDS) + 1e-10).log()
        x = torch.where(x == process.mask_id, (q_BDS / noise_BDS).argmax(-1), x)
    if bool((x == process.mask_id).any()):
        q_BDS = _posterior(network, process, x, float(times[-2]), 0.0)
        x = torch.where(x == process.mask_id, q_BDS.argmax(-1), x)
    return x


def _posterior(network: DIT, process: MaskedProcess, x: Tensor, t: float, s: float) -> Tensor:
    t_B = torch.full((len(x),), t, device=x.device)
    lam = network.sample_latents(len(x), 1, lambda shape: torch.rand(shape, device=x.device))
    prediction = network(x, t_B, lam)
    positions = torch.arange(x.shape[1], device=x.device).repeat(len(x))
    logits_NS = prediction.output_head.logits(prediction.features.flatten(0, 2), positions)
    log_p_BDS = process.constrain(logits_NS.view(*x.shape, -1), x)
    m_t, m_s = (float(process.schedule.mask_prob(torch.tensor(time))) for time in (t, s))
    q_BDS = log_p_BDS.exp() * (m_t - m_s)
    q_BDS[..., process.mask_id] = m_s
    return q_BDS
