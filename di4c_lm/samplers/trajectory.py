"""Sampling: one function for every sampler, network and grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.processes.denoiser import Denoiser
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import Rng
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.calls import Calls
from di4c_lm.samplers.draw import Draw
from di4c_lm.samplers.grids import check_grid
from di4c_lm.samplers.walk import Sampler, Walk


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
    sampler: Sampler | None = None,
    draw: Draw | None = None,
    hold_latents: bool = False,
    cond: Any = None,
    teacher: Denoiser | None = None,
    on_step: Callable[[Int64[Tensor, "B D"]], None] | None = None,
) -> Sample:
    """Draw x_0 down the grid `times`, from 1 to 0, keeping every visible token of `x_init` (prompts, infilling) as it is.

    `sampler` defaults to `Ancestral()`, `draw` to exact draws at temperature 1. `hold_latents` keeps one λ a sequence over the
    trajectory in place of a fresh one a call. `cond` (B, ...) is passed to the network. `teacher` is the second network of `Hybrid`.
    `on_step` sees every state. With a `KeyedRng` a sequence does not depend on its batch. Raises `ValueError` for an empty `x_init`, a
    grid that does not descend from 1 to 0, and settings that do not fit the network.
    """
    check_grid(times)
    if x_init.numel() == 0:
        raise ValueError(
            f"x_init must hold at least one sequence of at least one position, got shape {tuple(x_init.shape)}"
        )
    calls = Calls(denoiser, hold_latents=hold_latents, cond=cond)
    judge = None if teacher is None else Calls(teacher, hold_latents=hold_latents, cond=cond)
    walk = Walk(
        calls=calls,
        process=process,
        draw=draw or Draw(),
        rng=rng,
        fixed_BD=x_init != process.mask_id,
        teacher=judge,
    )
    x = x_init
    for x in (sampler or Ancestral()).steps(walk, x_init, times.to(x_init.device)):
        if on_step is not None:
            on_step(x)
    assert not bool(walk.masked(x).any())
    made = calls.made + (0 if judge is None else judge.made)
    return Sample(x, made / len(x_init))
