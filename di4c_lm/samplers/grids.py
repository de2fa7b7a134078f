"""Time grids of samplers: descending from 1 to 0."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

_PUBLISHED_END = 1e-5


def uniform_grid(steps: int) -> Float64[Tensor, " n"]:
    """1, (n-1)/n, ..., 0: `steps` + 1 times. The last step, to 0, reveals all that is left. Raises `ValueError` for `steps` < 1."""
    _check_steps(steps)
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def cosine_grid(steps: int) -> Float64[Tensor, " n"]:
    """cos(pi i / 2n): slow at first, few tokens at a time, and fast at the end (Chang et al. 2022). Raises `ValueError` for `steps` < 1."""
    _check_steps(steps)
    times = torch.cos(torch.arange(steps + 1, dtype=torch.float64) * (math.pi / 2 / steps))
    times[-1] = 0
    return times


def published_grid(steps: int) -> Float64[Tensor, " n"]:
    """The published loop: `steps` equal intervals from 1 to 1e-5, then one to 0 for the few tokens that are left."""
    _check_steps(steps)
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.cat([torch.linspace(1, _PUBLISHED_END, steps + 1, dtype=torch.float64), zero])


def listed_grid(times: Sequence[float]) -> Float64[Tensor, " n"]:
    """The times as given. Raises `ValueError` unless they descend from 1 to 0."""
    grid = torch.tensor(list(times), dtype=torch.float64)
    check_grid(grid)
    return grid


GRIDS: dict[str, Callable[[int], Tensor]] = {
    "uniform": uniform_grid,
    "cosine": cosine_grid,
    "published": published_grid,
}


def make_grid(grid: str | Sequence[float], steps: int, *, others: Sequence[str] = ()) -> Float64[Tensor, " n"]:
    """A grid by name with `steps` steps, or the listed times, whose number then is one more than the steps.

    Raises `ValueError` for an unknown name, `steps` < 1, or a list that does not descend from 1 to 0. A grid optimised on a model comes
    from `optimised.grid_for`, which accepts the names `others` too.
    """
    if not isinstance(grid, str):
        return listed_grid(grid)
    if grid not in GRIDS:
        raise ValueError(f"grid must be one of {', '.join([*GRIDS, *others])} or a list of times, got {grid!r}")
    return GRIDS[grid](steps)


def check_grid(times: Float64[Tensor, " n"]) -> None:
    """Raise `ValueError` unless `times` descends from 1 to 0."""
    if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must descend from 1 to 0, got {times.tolist()}")


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
