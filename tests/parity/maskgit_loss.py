"""`maskgit_loss`: the ImageNet run's loss on given logits, over all positions and states, in time t = 1 - r."""

from collections.abc import Iterator

import torch

from di4c_lm.losses.di4c import alpha
from tests.parity.given import ALPHA_KINDS, GRADIENT, Parts, everywhere, leaf, loss_tolerance, marginals_at, read_given
from tests.parity.golden import Computed, Golden, Tolerance, sub_cases

INPUTS = ("logits_student", "logits_teacher", "logits_student_teacher", "code", "x0_sampled")


def compute(golden: Golden) -> Iterator[Computed]:
    """Every array that is not an input."""
    x_0 = golden.tensor("code").flatten(1)
    positions = everywhere(x_0)
    teacher_BLDS = golden.tensor("logits_teacher")[:, None]
    target_BLDS = golden.tensor("logits_student_teacher").unflatten(0, (len(x_0), -1))
    targets_BTD = torch.cat([x_0[:, None], golden.tensor("x0_sampled")], 1)
    marginals = [marginals_at(logits, positions) for logits in (teacher_BLDS, target_BLDS)]
    for run, settings in sub_cases(golden):
        r_B = torch.tensor(settings["r"], dtype=torch.float64)
        low_B = (r_B >= 1 - golden.meta["r_delta"]).double()
        logits_BLDS = leaf(golden.tensor("logits_student").unflatten(0, (len(x_0), -1)))
        reading = read_given(logits_BLDS, positions, targets_BTD, marginals, components=True)
        weight_B = alpha(ALPHA_KINDS[settings["alpha_t"]], golden.meta["alpha_const"], 1 - r_B)
        parts = Parts(reading, weight_B, settings["use_cv"], low_B / golden.meta["r_delta"], 1 - low_B)
        yield from parts.computed(run, loss_tolerance(x_0.shape[1], logits_BLDS.shape[-1]))
        yield Computed(f"{run}_r", r_B, Tolerance(rtol=1e-6))
        yield Computed(f"{run}_r_weight", low_B, Tolerance())
        (grad_BLDS,) = torch.autograd.grad(parts.total, logits_BLDS)
        yield Computed(f"{run}_grad_logits_student", grad_BLDS.flatten(0, 1), GRADIENT)
