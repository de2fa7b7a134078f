"""One Di4C step as the published code takes it: the teacher run on L copies of x_t, and everything of shape (B·L, D, S) held."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.measure import Stopwatch
from di4c_lm.losses.di4c import alpha
from di4c_lm.networks.dit import DIT
from di4c_lm.processes.masked import MaskedProcess


def log_probs(network: DIT, process: MaskedProcess, x_ND: Tensor, t_N: Tensor, lam_N: Tensor | None) -> Tensor:
    """Constrained log-probabilities at every position, (N, D, S)."""
    prediction = network(x_ND, t_N, None if lam_N is None else lam_N[:, None, None])
    positions = torch.arange(x_ND.shape[1], device=x_ND.device).repeat(len(x_ND))
    logits_NS = prediction.output_head.logits(prediction.features.flatten(0, 2), positions)
    return process.constrain(logits_NS.view(*x_ND.shape, -1), x_ND)


def gumbel_sample(p_NDS: Tensor) -> Tensor:
    """Float32 exponential noise on every state."""
    return (p_NDS / (1e-10 - (torch.rand_like(p_NDS) + 1e-10).log())).argmax(-1)


def backbone_loss(
    student: DIT,
    teacher: DIT,
    process: MaskedProcess,
    x_0: Tensor,
    x_t: Tensor,
    t: float,
    u: float,
    num_lambdas: int,
    watch: Stopwatch,
) -> Tensor:
    """The data and consistency terms with sigmoid weight 0.1, averaged over the batch."""
    num_batch = len(x_0)
    rows_ND = x_t.repeat_interleave(num_lambdas, 0)
    t_N = torch.full((len(rows_ND),), t, device=x_0.device)
    with torch.no_grad(), watch.phase("teacher sampling"):
        log_p_NDS = log_probs(teacher, process, rows_ND, t_N, None)
        teacher_BDS = log_p_NDS[::num_lambdas].clone()
        m_t, m_u = (float(process.schedule.mask_prob(torch.tensor(time))) for time in (t, u))
        q_NDS = log_p_NDS.exp() * (m_t - m_u)
        q_NDS[..., process.mask_id] = m_u
        drawn_ND = gumbel_sample(q_NDS)
        x_u = torch.where(rows_ND == process.mask_id, drawn_ND, rows_ND)
        del log_p_NDS, q_NDS
    with torch.no_grad(), watch.phase("student on x_u"):
        upper_NDS = log_probs(student, process, x_u, t_N, torch.rand(len(x_u), device=x_0.device))
    with watch.phase("student on x_t"):
        log_p_NDS = log_probs(student, process, rows_ND, t_N, torch.rand(len(rows_ND), device=x_0.device))
    with watch.phase("loss"):
        upper_NDS = upper_NDS.log_softmax(-1)
        samples_ND = torch.distributions.Categorical(logits=upper_NDS).sample()
        log_p_BLDS = log_p_NDS.log_softmax(-1).unflatten(0, (num_batch, num_lambdas))
        log_mean_BDS = log_p_BLDS.logsumexp(1) - math.log(num_lambdas)
        upper_BDS = upper_NDS.unflatten(0, (num_batch, num_lambdas)).logsumexp(1) - math.log(num_lambdas)

        def correlation(x_BD: Tensor) -> Tensor:
            index = x_BD[:, None, :, None].expand(-1, num_lambdas, -1, 1)
            joint_B = log_p_BLDS.gather(3, index).squeeze(3).sum(2).logsumexp(1) - math.log(num_lambdas)
            return log_mean_BDS.gather(2, x_BD[..., None]).squeeze(2).sum(1) - joint_B

        def divergence(log_q_BDS: Tensor) -> Tensor:
            return F.kl_div(log_mean_BDS, log_q_BDS, log_target=True, reduction="none").sum((1, 2))

        weight = alpha("sigmoid", 0.1, torch.full((num_batch,), t, device=x_0.device))
        data_B = weight * correlation(x_0) + divergence(teacher_BDS.log_softmax(-1))
        columns = samples_ND.unflatten(0, (num_batch, num_lambdas)).unbind(1)
        consistency_B = sum(correlation(x_BD) for x_BD in columns) / num_lambdas + divergence(upper_BDS)
        return (data_B + consistency_B).mean()
