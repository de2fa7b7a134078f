"""Di4C's four terms (Hayakawa et al. 2025, section 3), unreduced, of one reading of the student at x_t.

With ℓ_j^d(v) = log p(x_0^d = v | x_t; λ_j), lme_j the log-mean-exp over λ_1..λ_L and m^d = lme_j ℓ_j^d:

    corr(x)      = - lme_j Σ_d ℓ_j^d(x^d) + Σ_d m^d(x^d)
    data         = α(t) corr(x_0) + Σ_d KL(teacher^d ‖ m^d)
    consistency  = mean_i corr(x̂_i) + Σ_d KL(m̄_u^d ‖ m^d)
    distil       = mean_j Σ_d KL(teacher^d ‖ ℓ_j^d)

The targets of the reading are x_0 and, after it, the samples x̂_i of the consistency target; its distributions the teacher's and, last, the
marginal m̄_u of the consistency target. Each term is (B,), in nats.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from di4c_lm.losses.reading import Reading

Alpha = Literal["sigmoid", "linear", "constant"]


def correlation(joint: Float[Tensor, "*B"], product: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """corr(x) = -log E_λ Π_d p^d(x^d | x_t; λ) + Σ_d log E_λ p^d(x^d | x_t; λ): what the product of the marginals misses (section 3)."""
    return product - joint


def data_term(
    reading: Reading, weight: Float[Tensor, " B"], *, marginal_weight: float = 1.0, control_variate: bool = True
) -> Float[Tensor, " B"]:
    """α(t) corr(x_0) + Σ_d KL(teacher^d ‖ m^d), for `weight` α(t) (section 3).

    `control_variate=False` leaves α(t) times the negative log-likelihood of x_0; the published switch sets `marginal_weight=0` with it.
    """
    joint, product = reading.joint[:, 0], reading.product[:, 0]
    corr = correlation(joint, product) if control_variate else -joint
    return weight * corr + marginal_weight * reading.divergence[:, 0]


def consistency_term(reading: Reading, *, control_variate: bool = True) -> Float[Tensor, " B"]:
    """mean_i corr(x̂_i) + Σ_d KL(m̄_u^d ‖ m^d): the student's step from t against the teacher's to u and its own from there (section 3).

    The product and the divergence are a control variate, whose expectation given x_u and its λ has no gradient: without it
    -mean_i log p(x̂_i | x_t) is left.
    """
    joint, product = reading.joint[:, 1:].mean(1), reading.product[:, 1:].mean(1)
    return correlation(joint, product) + reading.divergence[:, -1] if control_variate else -joint


def distillation_term(reading: Reading) -> Float[Tensor, " B"]:
    """mean_j Σ_d KL(teacher^d ‖ ℓ_j^d), an upper bound of the divergence from the mixture (appendix A.1)."""
    return reading.component_divergence


def alpha(kind: Alpha, scale: float, t: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """α(t): `scale` times sigmoid(20 (t - 1/2)) (the paper's), t, or 1."""
    if kind == "sigmoid":
        return scale * torch.sigmoid(20 * (t - 0.5))
    if kind == "linear":
        return scale * t
    return torch.full_like(t, scale)
