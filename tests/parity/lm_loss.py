"""`lm_loss`: the text run's loss on given logits."""

from collections.abc import Iterator

import torch
from torch import Tensor

from di4c_lm.losses.di4c import alpha
from di4c_lm.objectives.teacher_step import TeacherStep
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.masked import MaskedProcess
from tests.parity.given import ALPHA_KINDS, GRADIENT, Parts, everywhere, leaf, loss_tolerance, marginals_at, read_given
from tests.parity.golden import Computed, Golden, Tolerance, sub_cases

INPUTS = (
    "logits_student_raw",
    "logits_teacher_raw",
    "logits_teacher_mix_raw",
    "logits_student_teacher_raw",
    "x0",
    "xt",
    "xs",
    "x0_sampled",
)
_LOGITS = Tolerance(atol=1e-5, rtol=1e-7)  # the second part is 0.1 for the entries near -1e6
_TIMES = Tolerance(rtol=1e-5)


def compute(golden: Golden) -> Iterator[Computed]:
    """Every array that is not an input."""
    process = MaskedProcess(mask_id=golden.meta["mask_index"])
    for name, context in (("student", "xt"), ("teacher", "xt"), ("teacher_mix", "xt"), ("student_teacher", "xs")):
        logits_BLDS = _constrained(golden, process, name, context)
        yield Computed(f"logits_{name}", logits_BLDS.flatten(0, 1), _LOGITS)
    for run, settings in sub_cases(golden):
        yield from _loss(golden, process, run, settings)
        yield from _times(golden, process, run, settings)


def _per_row(golden: Golden, name: str) -> Tensor:
    """(B*L, D, S) as (B, L, D, S)."""
    return golden.tensor(name).unflatten(0, (len(golden.tensor("xt")), -1))


def _constrained(golden: Golden, process: MaskedProcess, name: str, context: str) -> Tensor:
    logits_BLDS = _per_row(golden, f"logits_{name}_raw")
    x_BLD = golden.tensor(context).view(len(logits_BLDS), -1, logits_BLDS.shape[2]).expand(logits_BLDS.shape[:3])
    log_p_NDS = process.constrain(logits_BLDS.flatten(0, 1), x_BLD.flatten(0, 1))
    return log_p_NDS.view_as(logits_BLDS)


def _loss(golden: Golden, process: MaskedProcess, run: str, settings: dict) -> Iterator[Computed]:
    x_t, x_0, samples_BLD = (golden.tensor(name) for name in ("xt", "x0", "x0_sampled"))
    t_B = torch.full((len(x_t),), settings["t"], dtype=torch.float64)
    low_B = t_B < golden.meta["distil_delta"]
    raw_BLDS = leaf(_per_row(golden, "logits_student_raw"))
    given_BLDS = leaf(_constrained(golden, process, "student", "xt"))
    teacher_name = "teacher_mix" if settings["is_teacher_di4c"] else "teacher"
    if settings["subs"]:
        teacher_BLDS = _constrained(golden, process, teacher_name, "xt")
        target_BLDS = _constrained(golden, process, "student_teacher", "xs")
        positions = Positions.where(x_t == process.mask_id)
    else:
        teacher_BLDS = _per_row(golden, f"logits_{teacher_name}_raw")
        target_BLDS = _per_row(golden, "logits_student_teacher_raw")
        positions = everywhere(x_t)

    def parts(logits_BLDS: Tensor, positions: Positions) -> Parts:
        targets_BTD = torch.cat([x_0[:, None], samples_BLD], 1)
        marginals = [marginals_at(logits, positions) for logits in (teacher_BLDS, target_BLDS)]
        reading = read_given(logits_BLDS, positions, targets_BTD, marginals, components=True)
        weight_B, reached_B = (
            alpha(ALPHA_KINDS[settings["alpha_t"]], golden.meta["alpha_const"], t_B),
            (~low_B).double(),
        )
        return Parts(reading, weight_B, settings["use_cv"], low_B.double(), reached_B, consistency_taken=reached_B)

    # From raw logits only the masked positions enter; given the constrained ones all do, and the visible ones add nothing.
    impossible = torch.zeros_like(raw_BLDS[0, 0, 0])
    impossible[process.mask_id] = -1e6 if settings["subs"] else 0.0
    from_raw = parts(raw_BLDS + impossible, positions)
    from_given = parts(given_BLDS if settings["subs"] else raw_BLDS, everywhere(x_t))
    tolerance = loss_tolerance(x_t.shape[1], raw_BLDS.shape[-1])
    yield from from_raw.computed(run, tolerance)
    (grad_raw,) = torch.autograd.grad(from_raw.total, raw_BLDS)
    (grad_given,) = torch.autograd.grad(from_given.total, given_BLDS if settings["subs"] else raw_BLDS)
    yield Computed(f"{run}_grad_logits_student_raw", grad_raw.flatten(0, 1), GRADIENT)
    yield Computed(f"{run}_grad_logits_student", grad_given.flatten(0, 1), GRADIENT)


def _times(golden: Golden, process: MaskedProcess, run: str, settings: dict) -> Iterator[Computed]:
    """The published times: t on a grid of T points, shifted up by one where it is turned into noise."""
    num_times, num_rows = golden.meta["T"], len(golden.tensor("logits_student_raw"))
    t_B = torch.full((len(golden.tensor("xt")),), settings["t"], dtype=torch.float64)
    u_B = TeacherStep(size=1 / num_times).end(t_B)

    def shifted(times_B: Tensor) -> Tensor:
        return ((times_B * num_times).floor() + 1) / num_times

    schedule = process.schedule
    teacher_rows = num_rows if settings["is_teacher_di4c"] else len(t_B)
    yield Computed(f"{run}_move_chance", schedule.mask_prob(shifted(t_B))[:, None], _TIMES)
    yield Computed(f"{run}_t_rep", _rows(t_B, num_rows), _TIMES)
    yield Computed(f"{run}_dt_rep", _rows(t_B - u_B, num_rows), _TIMES)
    for name, times_B, rows in (("s", u_B, num_rows), ("t", t_B, num_rows), ("teacher", t_B, teacher_rows)):
        sigma_B = -torch.log1p(-schedule.mask_prob(shifted(times_B)))
        yield Computed(f"{run}_cond_{name}", _rows(sigma_B, rows), _TIMES)


def _rows(values_B: Tensor, num_rows: int) -> Tensor:
    return values_B.repeat_interleave(num_rows // len(values_B))
