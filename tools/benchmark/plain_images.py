"""One Di4C step on tauLDR's chain as the published code takes it: everything of shape (B·L, D, S) held, each hop's law made in full."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.measure import Stopwatch
from di4c_lm.networks.unet import UNet
from di4c_lm.processes.gaussian import GaussianChain

_EPS = 1e-9


def log_probs(network: UNet, x_ND: Tensor, t: float, lam_N: Tensor | None) -> Tensor:
    """Normalised log-probabilities at every position, (N, D, S)."""
    t_N = torch.full((len(x_ND),), t, device=x_ND.device)
    prediction = network(x_ND, t_N, None if lam_N is None else lam_N[:, None, None])
    positions = torch.zeros(x_ND.numel(), dtype=torch.int64, device=x_ND.device)
    logits_NS = prediction.output_head.logits(prediction.features.flatten(0, 2), positions)
    return logits_NS.view(*x_ND.shape, -1).log_softmax(-1)


def hop(chain: GaussianChain, log_p_NDS: Tensor, x_t: Tensor, t: float, u: float) -> Tensor:
    """x_u from the posterior's law over all levels."""
    times = torch.tensor([t, u], device=x_t.device, dtype=torch.float64)
    whole_SS, low_SS = (matrix.float() + _EPS for matrix in chain.transition(times))
    high_SS = chain.transition(times[0], times[1]).float() + _EPS
    law_NDS = (log_p_NDS.exp() / whole_SS.T[x_t]) @ low_SS * high_SS.T[x_t]
    return torch.distributions.Categorical(probs=law_NDS).sample()


def unet_loss(
    student: UNet,
    teacher: UNet,
    chain: GaussianChain,
    x_0: Tensor,
    x_t: Tensor,
    times: tuple[float, float],
    num_lambdas: int,
    watch: Stopwatch,
) -> Tensor:
    """The data, consistency and distillation terms at (t, u), averaged over the batch."""
    t, u = times
    num_batch, device = len(x_0), x_0.device
    rows_ND, lam_N = x_t.repeat_interleave(num_lambdas, 0), torch.rand(num_batch * num_lambdas, device=device)
    with torch.no_grad(), watch.phase("teacher sampling"):
        teacher_BDS = log_probs(teacher, x_t, t, None)
        x_u = hop(chain, teacher_BDS.repeat_interleave(num_lambdas, 0), rows_ND, t, u)
    with torch.no_grad(), watch.phase("student on x_u"):
        upper_NDS = log_probs(student, x_u, u, torch.rand_like(lam_N))
    with watch.phase("student on x_t"):
        log_p_NDS = log_probs(student, rows_ND, t, lam_N)
    with watch.phase("distillation"):
        low_N = torch.full((len(rows_ND),), chain.min_time, dtype=torch.float64, device=device)
        x_low = chain.corrupt(x_0.repeat_interleave(num_lambdas, 0), low_N, torch.Generator().manual_seed(0))
        with torch.no_grad():
            target_NDS = log_probs(teacher, x_low, chain.min_time, None)
        own_NDS = log_probs(student, x_low, chain.min_time, lam_N)
        distil = F.kl_div(own_NDS, target_NDS, log_target=True, reduction="sum") / (num_batch * num_lambdas)
    with watch.phase("loss"):
        samples_ND = torch.distributions.Categorical(logits=upper_NDS).sample()
        log_p_BLDS = log_p_NDS.unflatten(0, (num_batch, num_lambdas))
        log_mean_BDS = log_p_BLDS.logsumexp(1) - math.log(num_lambdas)
        upper_BDS = upper_NDS.unflatten(0, (num_batch, num_lambdas)).logsumexp(1) - math.log(num_lambdas)

        def correlation(x_BD: Tensor) -> Tensor:
            index = x_BD[:, None, :, None].expand(-1, num_lambdas, -1, 1)
            joint_B = log_p_BLDS.gather(3, index).squeeze(3).sum(2).logsumexp(1) - math.log(num_lambdas)
            return log_mean_BDS.gather(2, x_BD[..., None]).squeeze(2).sum(1) - joint_B

        def divergence(log_q_BDS: Tensor) -> Tensor:
            return F.kl_div(log_mean_BDS, log_q_BDS, log_target=True, reduction="none").sum((1, 2))

        data_B = torch.sigmoid(torch.tensor(20 * (t - 0.5))) * correlation(x_0) + divergence(teacher_BDS)
        columns = samples_ND.unflatten(0, (num_batch, num_lambdas)).unbind(1)
        consistency_B = sum(correlation(x_BD) for x_BD in columns) / num_lambdas + divergence(upper_BDS)
        return (data_B + consistency_B).mean() + distil
