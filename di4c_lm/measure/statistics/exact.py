"""How far a sampler's distribution is from one that is known exactly. Axes: S outcomes, N samples."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray


@final
@dataclass(frozen=True, kw_only=True)
class ExactCheck:
    """Total variation between the samples' frequencies and the exact distribution.

    Frequencies of exact samples are away from it too: by `floor` on average, and by more than `observed` with probability `p_value`.
    `floor_high` is the 95 % quantile. `excess_nats`: mean of -log p over the samples less the entropy; 0 on average for exact ones.
    """

    observed: float
    floor: float
    floor_high: float
    p_value: float
    excess_nats: float
    num_samples: int


def total_variation(p: Float64[ndarray, " S"], q: Float64[ndarray, " S"]) -> float:
    """½ Σ |p - q|, 0 to 1. Raises `ValueError` for what is no distribution."""
    for one in (p, q):
        if (one < 0).any() or not np.isclose(one.sum(), 1, atol=1e-6):
            raise ValueError(
                f"probabilities must be at least 0 and sum to 1, got one of {one.min():.3g} and a sum of {one.sum():.6g}"
            )
    return float(np.abs(p - q).sum() / 2)


def product_of_marginals(p: Float64[ndarray, " S"], outcomes: Int64[ndarray, "S D"]) -> Float64[ndarray, " S"]:
    """Independent positions with the marginals of `p`: what one step of a sampler without λ can reach at best."""
    product = np.ones_like(p)
    for states in outcomes.T:
        product *= np.bincount(states, weights=p)[states]
    return product


def check_samples(
    index: Int64[ndarray, " N"], p: Float64[ndarray, " S"], *, repeats: int = 200, seed: int = 0
) -> ExactCheck:
    """`index` holds the samples' outcomes. The floor is that of `repeats` sets of as many exact samples.

    Raises `ValueError` for no samples and for outcomes that are not there.
    """
    if len(index) == 0 or index.min() < 0 or index.max() >= len(p):
        raise ValueError(f"samples must be at least one of the outcomes 0 to {len(p) - 1}")
    count = len(index)
    observed = total_variation(np.bincount(index, minlength=len(p)) / count, p)
    rng = np.random.default_rng([seed, 6])
    exact = p / p.sum()
    own = np.array([total_variation(rng.multinomial(count, exact) / count, exact) for _ in range(repeats)])
    with np.errstate(divide="ignore"):
        surprise = -np.log(p)
    entropy = float((p * np.where(p > 0, surprise, 0.0)).sum())
    return ExactCheck(
        observed=observed,
        floor=float(own.mean()),
        floor_high=float(np.quantile(own, 0.95)),
        p_value=float((1 + (own >= observed).sum()) / (1 + repeats)),
        excess_nats=float(surprise[index].mean()) - entropy,
        num_samples=count,
    )
