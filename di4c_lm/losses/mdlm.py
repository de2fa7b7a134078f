"""MDLM's continuous-time bound (Sahoo et al. 2024, Eq. 10): the weight of Σ_d -log p(x_0^d | x_t) over the masked positions."""

import torch
from jaxtyping import Float
from torch import Tensor


def log_linear_weight(t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """m'(t) / m(t) of the log-linear schedule, 1 / t whatever its eps: with it the sum is an unbiased estimate of the bound in nats."""
    return torch.reciprocal(t)
