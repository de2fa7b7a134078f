"""`maskgit_schedules` and `maskgit_denoise`: masks, numbers of tokens a step, and one step of the teacher by confidence."""

from collections.abc import Iterator

import torch
from torch import Tensor

from di4c_lm.processes.masked import MASKGIT_SCHEDULES, Schedule
from di4c_lm.samplers.confidence import published_counts, surest
from tests.parity.golden import Computed, Golden, Tolerance

SCHEDULES_INPUTS = ("grid_r", "mask_code_in", "mask_u", "mask_r")
DENOISE_INPUTS = ("code", "logits", "logits_uncond", "gumbel", "pred_code", "r", "mask_u")
_EXACT = Tolerance()
_SHARE = Tolerance(atol=2.5e-4)  # float32 arccos near 1
_LOGITS = Tolerance(atol=1e-5, rtol=1e-5)


def compute_schedules(golden: Golden) -> Iterator[Computed]:
    """Every array that is not an input; MASK is the file's `mask_value`, 16 unless it says another."""
    mask_id = golden.meta.get("mask_value", 16)
    for name in golden.arrays:
        if name.startswith("sche_P"):
            _, side, mode, steps = name.split("_")
            yield Computed(name, _counts(MASKGIT_SCHEDULES[mode], int(side[1:]) ** 2, int(steps)), _EXACT)
    for name, schedule in MASKGIT_SCHEDULES.items():
        if f"val_to_mask_{name}" in golden.arrays:
            yield Computed(f"val_to_mask_{name}", schedule.mask_prob(1 - golden.tensor("grid_r").double()), _SHARE)
            code_BPP, u_BPP = golden.tensor("mask_code_in"), golden.tensor("mask_u")
            masked_BPP = _masked(schedule, code_BPP, u_BPP, golden.tensor("mask_r"), mask_id=mask_id)
            yield Computed(f"masked_code_{name}", masked_BPP, _EXACT)


def compute_denoise(golden: Golden) -> Iterator[Computed]:
    """Every array that is not an input."""
    for run in sorted(name.removesuffix("_code_out") for name in golden.arrays if name.endswith("_code_out")):
        mode, w = run.split("_w")
        yield from _one_step(golden, run, MASKGIT_SCHEDULES[mode], float(w))


def _counts(schedule: Schedule, num_places: int, steps: int) -> Tensor:
    times = 1 - torch.linspace(0, 1, steps + 1)
    return published_counts(schedule.mask_prob(times), torch.tensor([num_places]))[0]


def _masked(schedule: Schedule, code_BPP: Tensor, u_BPP: Tensor, r_B: Tensor, *, mask_id: int) -> Tensor:
    return torch.where(u_BPP < schedule.mask_prob(1 - r_B)[:, None, None], mask_id, code_BPP)


def _one_step(golden: Golden, run: str, schedule: Schedule, w: float) -> Iterator[Computed]:
    """From time t = 1 - r a step of r_delta down, for each of L samples of an example; the last state is MASK."""
    meta, r_B, code_BPP = golden.meta, golden.tensor("r"), golden.tensor("code")
    mask_id = golden.arrays["logits"].shape[2] - 1
    masked_code = _masked(schedule, code_BPP, golden.tensor("mask_u"), r_B, mask_id=mask_id)
    x_BD = masked_code.flatten(1)
    masked_BD = x_BD == mask_id
    progress_B = r_B * meta["teacher_steps"] / (meta["teacher_steps"] - 1)
    num_places, num_masked_B = x_BD.shape[1], masked_BD.sum(1)
    left_B = schedule.mask_prob(1 - (r_B + meta["r_delta"]).clamp_max(1)) * num_places
    count_B = (num_places - left_B - (num_places - num_masked_B)).trunc().long().clamp_min(0)
    count_B = torch.minimum(count_B, num_masked_B)
    w_B11 = (w * progress_B)[:, None, None]
    logits_BDS = (1 + w_B11) * golden.tensor("logits") - w_B11 * golden.tensor("logits_uncond")

    token_ND, gumbel_ND = golden.tensor("pred_code"), golden.tensor("gumbel")
    repeats = len(token_ND) // len(x_BD)
    row_N = torch.arange(len(x_BD)).repeat_interleave(repeats)
    log_p_ND = logits_BDS.log_softmax(2)[row_N].gather(2, token_ND[..., None]).squeeze(2)
    score_ND = log_p_ND + meta["r_temp"] * gumbel_ND * (1 - progress_B)[row_N, None]
    out_ND = torch.where(surest(score_ND, masked_BD[row_N], count_B[row_N]), token_ND, x_BD[row_N])
    yield Computed(f"{run}_masked_code", masked_code, _EXACT)
    yield Computed(f"{run}_n_masked", num_masked_B, _EXACT)
    yield Computed(f"{run}_t", count_B, _EXACT)
    yield Computed(f"{run}_logits_out", logits_BDS, _LOGITS)
    yield Computed(f"{run}_code_out", out_ND.view(len(out_ND), *code_BPP.shape[1:]), _EXACT)
