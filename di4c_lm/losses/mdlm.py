"""MDLM's continuous-time bound (Sahoo et al. 2024, Eq. 10) from a factored prediction."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.losses.reading import read_mixture
from di4c_lm.processes.denoiser import OutputHead, Positions


def mdlm_bound(
    features: Float[Tensor, "M H"],
    output_head: OutputHead,
    positions: Positions,
    x_0: Int64[Tensor, " M"],
    weight: Float[Tensor, " B"],
    *,
    chunk_rows: int = 0,
) -> Float[Tensor, " B"]:
    """weight(t) · Σ_d -log p(x_0^d | x_t) over the masked positions: with weight m'(t) / m(t) an unbiased estimate of the bound in nats."""
    reading = read_mixture(features[:, None], positions.position, output_head, x_0[:, None], chunk_rows=chunk_rows)
    return -weight.double() * positions.per_example(reading.target_log_p[:, 0, 0])


def log_linear_weight(t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """m'(t) / m(t) of the log-linear schedule: 1 / t, whatever its eps."""
    return torch.reciprocal(t)
