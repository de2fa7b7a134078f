"""Ancestral sampling of masked diffusion: a step, and a loop over a time grid."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from di4c_lm.models.readout import Denoiser, Prediction
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import Rng, uniform

_ROWS = 256  # rows read out at once


@dataclass(frozen=True)
class Sample:
    """Sequences without MASK, and how many network calls one of them took on average (NFE)."""

    x: Int64[Tensor, "B D"]
    nfe: float


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    process: MaskedProcess,
    x_init: Int64[Tensor, "B D"],
    times: Float64[Tensor, " n"],
    rng: Rng,
    *,
    temperature: float = 1.0,
    on_step: Callable[[Int64[Tensor, "B D"]], None] | None = None,
) -> Sample:
    """Draw x_0 down the grid `times`, from 1 to 0, keeping every visible token of `x_init` (prompts, infilling) as it is.

    A step first chooses which positions become visible, then predicts, draws and reads out those alone; a fresh λ is drawn for each
    sequence and call. Sequences that reveal nothing in a step are not run, and NFE counts what was run. Raises `ValueError` for a grid that
    does not descend from 1 to 0 or a temperature that is not positive.
    """
    if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must descend from 1 to 0, got {times.tolist()}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    x, calls = x_init, 0
    for t, s in pairwise(times.to(x.device)):
        x, rows = step(denoiser, process, x, t, s, rng, temperature=temperature)
        calls += rows
        if on_step is not None:
            on_step(x)
    return Sample(x, calls / len(x_init))


def step(
    denoiser: Denoiser,
    process: MaskedProcess,
    x_t: Int64[Tensor, "B D"],
    t: Float64[Tensor, ""],
    s: Float64[Tensor, ""],
    rng: Rng,
    *,
    temperature: float = 1.0,
) -> tuple[Int64[Tensor, "B D"], int]:
    """x_s ~ p(x_s | x_t) (Sahoo et al. 2024, Eq. 7; with a fresh λ, Hayakawa et al. 2025), and the number of sequences that were run."""
    num_batch = len(x_t)
    revealed_BD = _revealed(process, x_t, t, s, rng)
    lam = denoiser.sample_latents(num_batch, 1, lambda shape: uniform(rng, shape, x_t.device))
    u_BD = uniform(rng, tuple(x_t.shape), x_t.device)
    run_R = revealed_BD.any(1).nonzero().squeeze(1)
    if len(run_R) == 0:
        return x_t, 0
    prediction = denoiser(x_t[run_R], t.float().expand(len(run_R)), None if lam is None else lam[run_R])
    row_M, position_M = revealed_BD[run_R].nonzero(as_tuple=True)
    u_M = u_BD[run_R[row_M], position_M]
    drawn = [
        sample_categorical(_probs(prediction, row, position, temperature), u)
        for row, position, u in zip(row_M.split(_ROWS), position_M.split(_ROWS), u_M.split(_ROWS), strict=True)
    ]
    x_s = x_t.clone()
    x_s[run_R[row_M], position_M] = torch.cat(drawn)
    return x_s, len(run_R)


def _revealed(process: MaskedProcess, x_t: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Bool[Tensor, "B D"]:
    num_batch = len(x_t)
    revealed_BD = process.reveal(x_t, t.expand(num_batch), s.expand(num_batch), rng)
    return (x_t == process.mask_id) if s == 0 else revealed_BD


def _probs(prediction: Prediction, row_C: Tensor, position_C: Tensor, temperature: float) -> Tensor:
    logits_CS = prediction.readout.logits(prediction.features[row_C, 0, position_C], position_C)
    return (logits_CS / temperature).softmax(1)
