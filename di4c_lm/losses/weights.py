"""Weights of the datapoint term over time."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Alpha = Literal["sigmoid", "linear", "constant"]


def alpha(kind: Alpha, scale: float, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """α(t): `scale` times sigmoid(20 (t - 1/2)) (the paper's), t, or 1."""
    if kind == "sigmoid":
        return scale * torch.sigmoid(20 * (t - 0.5))
    if kind == "linear":
        return scale * t
    return torch.full_like(t, scale)
