"""`tauldr_loss`: the CIFAR-10 run's loss on given logits; every term at every step, the distillation from L inputs of its own."""

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from di4c_lm.losses.di4c import alpha
from tests.parity.given import GRADIENT, Parts, everywhere, leaf, loss_tolerance, marginals_at, read_given
from tests.parity.golden import Computed, Golden, Tolerance, sub_cases
from tests.parity.tauldr_transition import chain_of

INPUTS = (
    "minibatch",
    "logits_teacher_t",
    "logits_teacher_mint",
    "logits_student_t",
    "logits_student_mint",
    "logits_student_u",
    "pst_p0t",
    "pst_x_t",
    "pst_x_0",
    *(f"c*_{draw}" for draw in ("ts", "delta_t", "us", "mints", "x_t", "x_mint", "x_u", "x_0", "pst_x0")),
)


def compute(golden: Golden) -> Iterator[Computed]:
    """The components, totals and gradients."""
    x_0 = golden.tensor("minibatch").flatten(1)
    positions = everywhere(x_0)
    target_BLDS = golden.tensor("logits_student_u").unflatten(0, (len(x_0), -1))
    marginals = [
        marginals_at(logits, positions) for logits in (golden.tensor("logits_teacher_t")[:, None], target_BLDS)
    ]
    for run, settings in sub_cases(golden):
        targets_BTD = torch.cat([x_0[:, None], golden.tensor(f"{run}_x_0")], 1)
        logits_BLDS = leaf(golden.tensor("logits_student_t").unflatten(0, (len(x_0), -1)))
        low_NDS = leaf(golden.tensor("logits_student_mint"))
        reading = read_given(logits_BLDS, positions, targets_BTD, marginals, components=False)
        distil_B = _distil(golden.tensor("logits_teacher_mint"), low_NDS).view(len(x_0), -1).mean(1)
        reading = replace(reading, component_divergence=distil_B)
        weight_B = _alpha(settings["time_schedule"], golden.tensor(f"{run}_ts").double())
        always_B = torch.ones_like(weight_B)
        parts = Parts(reading, weight_B, settings["use_cv"], always_B, always_B)
        yield from parts.computed(run, loss_tolerance(x_0.shape[1], logits_BLDS.shape[-1]))
        grad_BLDS, grad_low_NDS = torch.autograd.grad(parts.total, [logits_BLDS, low_NDS])
        yield Computed(f"{run}_grad_logits_student_t", grad_BLDS.flatten(0, 1), GRADIENT)
        yield Computed(f"{run}_grad_logits_student_mint", grad_low_NDS, GRADIENT)
    yield from _posteriors(golden)


def _posteriors(golden: Golden) -> Iterator[Computed]:
    """p(x_s | x_t) given a distribution of x_0, and given x_0 itself."""
    p_NS = golden.tensor("pst_p0t").flatten(0, 1)
    x_t_N, x_0_N = golden.tensor("pst_x_t").flatten(), golden.tensor("pst_x_0").flatten()
    chain = chain_of(golden.meta["rate"], p_NS.shape[1])
    certain_NS = F.one_hot(x_0_N, p_NS.shape[1]).double()
    for number, (t, s) in enumerate(golden.meta["pst_pairs"]):
        for name, given_NS in (("marginal", p_NS), ("given_x0", certain_NS)):
            times = (torch.tensor(time, dtype=torch.float64) for time in (t, s))
            posterior_NS = chain.posterior(x_t_N, given_NS, *times)
            posterior_BDS = posterior_NS.view(golden.tensor("pst_p0t").shape)
            yield Computed(f"pst{number}_{name}", posterior_BDS, Tolerance(atol=2e-6))
            yield Computed(f"pst{number}_{name}_np64", posterior_BDS, Tolerance(atol=2e-6))
            if name == "marginal":
                yield Computed(f"pst{number}_logprob", posterior_BDS.log(), Tolerance(atol=1e-5))


def _distil(teacher_NDS: Tensor, student_NDS: Tensor) -> Tensor:
    """KL(teacher || component) of each row, each with an x_δ of its own: B·L examples of one component."""
    positions = everywhere(student_NDS[..., 0])
    none_N0D = student_NDS.new_zeros(len(student_NDS), 0, student_NDS.shape[1], dtype=torch.int64)
    marginals = [marginals_at(teacher_NDS[:, None], positions)]
    return read_given(student_NDS[:, None], positions, none_N0D, marginals, components=False).divergence[:, 0]


def _alpha(schedule: str | None, t_B: Tensor) -> Tensor:
    if schedule is None:
        return alpha("constant", 1.0, t_B)
    if schedule == "zero":
        return alpha("constant", 0.0, t_B)
    return alpha("sigmoid" if schedule == "sigmoid" else "linear", 1.0, t_B)
