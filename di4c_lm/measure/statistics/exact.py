"""How far a sampler's law is from one that is known exactly. Axes: S outcomes, N samples."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray


@final
@dataclass(frozen=True, kw_only=True)
class LawCheck:
    """Total variation between the samples' frequencies and a law.

    Frequencies of exact samples are away from it too: by `floor` on average, and by more than `observed` with probability `p_value`.
    `floor_high` is the 95 % quantile. `excess_nats`: mean of -log p over the samples less the law's entropy; 0 on average for exact ones.
    """

    observed: float
    floor: float
    floor_high: float
    p_value: float
    excess_nats: float
    num_samples: int


def total_variation(p: Float64[ndarray, " S"], q: Float64[ndarray, " S"]) -> float:
    """½ Σ |p - q|, 0 to 1. Raises `ValueError` for what is no law."""
    for law in (p, q):
        if (law < 0).any() or not np.isclose(law.sum(), 1, atol=1e-6):
            raise ValueError(
                f"a law has probabilities of at least 0 that sum to 1, found {law.min():.3g} and {law.sum():.6g}"
            )
    return float(np.abs(p - q).sum() / 2)


def product_of_marginals(law: Float64[ndarray, " S"], outcomes: Int64[ndarray, "S D"]) -> Float64[ndarray, " S"]:
    """The law of independent positions with the same marginals: what one step of a sampler without λ can reach at best."""
    product = np.ones_like(law)
    for states in outcomes.T:
        product *= np.bincount(states, weights=law)[states]
    return product


def check_samples(
    index: Int64[ndarray, " N"], law: Float64[ndarray, " S"], *, repeats: int = 200, seed: int = 0
) -> LawCheck:
    """`index` names the samples' outcomes. The floor is that of `repeats` sets of as many exact samples.

    Raises `ValueError` for no samples and for outcomes that are not there.
    """
    if len(index) == 0 or index.min() < 0 or index.max() >= len(law):
        raise ValueError(f"samples must be at least one of the outcomes 0 to {len(law) - 1}")
    count = len(index)
    observed = total_variation(np.bincount(index, minlength=len(law)) / count, law)
    rng = np.random.default_rng([seed, 6])
    exact = law / law.sum()
    drawn = np.array([total_variation(rng.multinomial(count, exact) / count, exact) for _ in range(repeats)])
    with np.errstate(divide="ignore"):
        surprise = -np.log(law)
    entropy = float((law * np.where(law > 0, surprise, 0.0)).sum())
    return LawCheck(
        observed=observed,
        floor=float(drawn.mean()),
        floor_high=float(np.quantile(drawn, 0.95)),
        p_value=float((1 + (drawn >= observed).sum()) / (1 + repeats)),
        excess_nats=float(surprise[index].mean()) - entropy,
        num_samples=count,
    )
