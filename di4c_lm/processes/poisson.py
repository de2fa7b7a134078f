"""Exact Poisson draws: one 64-bit uniform a draw, inverse distribution function in float64."""

import torch
from jaxtyping import Float64, Int64
from torch import Tensor


def sample_poisson(mean: Float64[Tensor, "..."], u: Float64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """The least k with P(X <= k) > u, for X of the given means and uniforms `u` of the same shape.

    P(X <= k) is the regularised incomplete gamma function Q(k + 1, mean). Raises `ValueError` for a negative or non-finite mean.
    """
    if not bool((mean.isfinite() & (mean >= 0)).all()):
        raise ValueError("mean: expected finite values of at least 0")
    high = (mean + 12 * mean.sqrt() + 40).ceil()  # P(X > high) is below 2^-53, and with it every uniform's
    low = torch.full_like(high, -1)
    widest = float(high.max()) + 1 if high.numel() else 1.0
    while widest > 1:
        middle = ((low + high) / 2).floor()
        above = torch.special.gammaincc((middle + 1).clamp_min(1), mean) > u
        beyond = middle < 0
        high = torch.where(above & ~beyond, middle, high)
        low = torch.where(above & ~beyond, low, middle)
        widest = float((high - low).max())
    return high.long()
