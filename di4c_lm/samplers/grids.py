"""Time grids of samplers: descending from 1 to 0."""

import torch
from jaxtyping import Float64
from torch import Tensor


def uniform_grid(steps: int) -> Float64[Tensor, " n"]:
    """1, (n-1)/n, ..., 0: `steps` + 1 times. The last step, to 0, reveals all that is left. Raises `ValueError` for `steps` < 1."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)
