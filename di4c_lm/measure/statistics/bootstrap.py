"""Intervals and tests by resampling documents.

A `Statistic` reduces the last axis, documents, of arrays of shape (N,) or of their resamples (R, N), to () or (R,).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

Statistic: TypeAlias = Callable[..., ndarray]
_ENTRIES_AT_ONCE = 1 << 22  # of an index array: 32 MiB


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic of the whole sample and its percentile bootstrap interval."""

    estimate: float
    low: float
    high: float


@final
@dataclass(frozen=True, kw_only=True)
class Difference:
    """statistic(a) - statistic(b), its percentile bootstrap interval, and the two-sided p-value of the swap test."""

    estimate: float
    low: float
    high: float
    p_value: float


def interval(
    statistic: Statistic, arrays: Sequence[ndarray], *, resamples: int, seed: int, level: float = 0.95, groups: int = 1
) -> Interval:
    """Percentile bootstrap interval (Efron 1979): documents are drawn with replacement, `resamples` times.

    `statistic(*arrays)` reduces the last axis of arrays (N,) and of their resamples (R, N); all arrays share N. Where the N documents are
    `groups` equal blocks, one a seed, seeds are drawn with replacement first and documents within each (Davison and Hinkley 1997, 3.8).
    Raises `ValueError` where N < 2, the arrays differ in length, or the blocks are not equal.
    """
    num_documents = _common_length(arrays)
    draws = [
        statistic(*(a[index_RN] for a in arrays)) for index_RN in resamples_of(num_documents, resamples, seed, groups)
    ]
    low, high = quantiles(np.concatenate(draws), level)
    return Interval(estimate=float(statistic(*arrays)), low=low, high=high)


def paired_difference(
    statistic: Statistic,
    a: Sequence[ndarray],
    b: Sequence[ndarray],
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Difference:
    """statistic(a) - statistic(b), where document n of `a` belongs to document n of `b`.

    They share a prompt or a seed; for independent draws any pairing will do.

    The interval resamples pairs. The p-value is of the swap test: under "a and b are exchangeable" each pair may
    trade places, which is exact at any sample size up to Monte Carlo error; (1 + #{|difference| >= observed}) / (1 +
    resamples) is never 0.
    """
    num_documents = _common_length([*a, *b])
    observed = float(statistic(*a) - statistic(*b))
    draws = [
        statistic(*(x[index_RN] for x in a)) - statistic(*(x[index_RN] for x in b))
        for index_RN in resamples_of(num_documents, resamples, seed)
    ]
    low, high = quantiles(np.concatenate(draws), level)
    rng = np.random.default_rng([seed, 1])
    extreme = 0
    for rows in _row_counts(num_documents, resamples):
        swap_RN = rng.random((rows, num_documents)) < 0.5
        swapped_a = [np.where(swap_RN, y, x) for x, y in zip(a, b, strict=True)]
        swapped_b = [np.where(swap_RN, x, y) for x, y in zip(a, b, strict=True)]
        difference_R = statistic(*swapped_a) - statistic(*swapped_b)
        extreme += int((np.abs(difference_R) >= abs(observed) * (1 - 1e-12)).sum())
    return Difference(estimate=observed, low=low, high=high, p_value=(1 + extreme) / (1 + resamples))


def _common_length(arrays: Sequence[ndarray]) -> int:
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(f"arrays of one length are needed, got {[len(array) for array in arrays]}")
    (length,) = lengths
    if length < 2:
        raise ValueError(f"an interval needs at least 2 documents, got {length}")
    return length


def _row_counts(num_documents: int, resamples: int) -> list[int]:
    rows = max(1, _ENTRIES_AT_ONCE // num_documents)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]


def resamples_of(num_documents: int, resamples: int, seed: int, groups: int = 1) -> Iterator[Int[ndarray, "R N"]]:
    """The documents' numbers in each resample, in blocks of rows; see `interval`."""
    if num_documents % groups:
        raise ValueError(f"{num_documents} documents are not {groups} blocks of one size")
    rng = np.random.default_rng([seed, 0])
    each = num_documents // groups
    for rows in _row_counts(num_documents, resamples):
        if groups == 1:
            yield rng.integers(num_documents, size=(rows, num_documents))
            continue
        block_RG1 = rng.integers(groups, size=(rows, groups, 1))
        yield (block_RG1 * each + rng.integers(each, size=(rows, groups, each))).reshape(rows, num_documents)


def quantiles(draws_R: Float[ndarray, " R"], level: float) -> tuple[float, float]:
    """The ends of the central interval that holds the share `level` of the draws."""
    low, high = np.quantile(draws_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
