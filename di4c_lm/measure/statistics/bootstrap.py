"""Intervals and tests by resampling documents or images, the units.

A `Statistic` reduces the last axis, units, of arrays of shape (N,) or of their resamples (R, N), to () or (R,).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, final, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

Statistic: TypeAlias = Callable[..., ndarray]
_ENTRIES_AT_ONCE = 1 << 22  # of an index array: 32 MiB


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic of the whole sample, or a difference of two, its 95 % interval and, where it is tested, the p-value."""

    estimate: float
    low: float
    high: float
    p_value: float | None = None


@runtime_checkable
class Quantity(Protocol):
    """A statistic of one sample, which knows its interval and how to be compared with that of another sample.

    `tested`: its interval has a p-value of its own.
    """

    tested: bool

    def interval(self, *, resamples: int, seed: int) -> Interval:
        """The statistic with its 95 % bootstrap interval."""
        ...

    def minus(self, other: Any, *, resamples: int, seed: int) -> Interval:
        """The difference from the same statistic of another sample, with its interval and the two-sided p-value of a test."""
        ...


def mean(values: Float[ndarray, "*R N"]) -> Float[ndarray, "*R"]:
    """The mean over units."""
    return np.asarray(values.mean(-1))


def exp_mean(values: Float[ndarray, "*R N"]) -> Float[ndarray, "*R"]:
    """exp of the mean over units: a perplexity of nats a token."""
    return np.asarray(np.exp(values.mean(-1)))


@final
@dataclass(frozen=True, eq=False)
class Resampled:
    """`statistic(*arrays)` of N units, which is cheap enough to be computed of every resample.

    Where the units are `groups` equal blocks, one a seed, seeds are resampled first and units within each (Davison and Hinkley 1997, 3.8).
    """

    statistic: Statistic
    arrays: tuple[ndarray, ...]
    groups: int = 1
    tested = False

    def interval(self, *, resamples: int, seed: int) -> Interval:
        """The percentile bootstrap interval (Efron 1979).

        Raises `ValueError` where N < 2, the arrays differ in length, or the blocks are not equal.
        """
        num_units = _common_length(self.arrays)
        found = [
            self.statistic(*(a[index_RN] for a in self.arrays))
            for index_RN in resamples_of(num_units, resamples, seed, self.groups)
        ]
        low, high = quantiles(np.concatenate(found))
        return Interval(estimate=float(self.statistic(*self.arrays)), low=low, high=high)

    def minus(self, other: "Resampled", *, resamples: int, seed: int) -> Interval:
        """The difference where unit n here belongs to unit n of `other`: they share a prompt or a seed.

        For independent samples any pairing will do. The interval resamples pairs. The p-value is of the swap test: under "a and b are
        exchangeable" each pair may trade places, which is exact at any sample size up to Monte Carlo error; (1 + #{|difference| >=
        observed}) / (1 + resamples) is never 0.
        """
        statistic, a, b = self.statistic, self.arrays, other.arrays
        num_units = _common_length([*a, *b])
        observed = float(statistic(*a) - statistic(*b))
        found = [
            statistic(*(x[index_RN] for x in a)) - statistic(*(x[index_RN] for x in b))
            for index_RN in resamples_of(num_units, resamples, seed)
        ]
        low, high = quantiles(np.concatenate(found))
        rng = np.random.default_rng([seed, 1])
        extreme = 0
        for rows in _row_counts(num_units, resamples):
            swap_RN = rng.random((rows, num_units)) < 0.5
            swapped_a = [np.where(swap_RN, y, x) for x, y in zip(a, b, strict=True)]
            swapped_b = [np.where(swap_RN, x, y) for x, y in zip(a, b, strict=True)]
            difference_R = statistic(*swapped_a) - statistic(*swapped_b)
            extreme += int((np.abs(difference_R) >= abs(observed) * (1 - 1e-12)).sum())
        return Interval(estimate=observed, low=low, high=high, p_value=(1 + extreme) / (1 + resamples))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Linearised:
    """A statistic that is costly to compute, or biased in small samples, with the influence of each of its N units, of mean 0.

    To first order the statistic of a resample is its value here plus the mean influence of the resample, so that one decomposition serves
    every resample. It also keeps the interval about the estimate: a plain bootstrap of the Fréchet distance, whose bias grows where a
    resample repeats units, lies above it. `groups` as in `Resampled`.
    """

    estimate: float
    influence: Float[ndarray, " N"]
    groups: int = 1
    tested = False

    def interval(self, *, resamples: int, seed: int) -> Interval:
        """The bootstrap interval, as that of `Resampled`."""
        whole = Resampled(lambda influence: self.estimate + influence.mean(-1), (self.influence,), self.groups)
        return whole.interval(resamples=resamples, seed=seed)

    def minus(self, other: "Linearised", *, resamples: int, seed: int) -> Interval:
        """The difference of independent samples: bootstrap interval, and p-value of a normal distribution with the bootstrap's spread."""
        a_R, b_R = (
            np.concatenate(
                [one.influence[index].mean(-1) for index in resamples_of(len(one.influence), resamples, s, one.groups)]
            )
            for one, s in ((self, seed), (other, seed + 1))
        )
        observed = self.estimate - other.estimate
        low, high = quantiles(observed + (a_R - b_R))
        error = float((a_R - b_R).std())
        p_value = math.erfc(abs(observed) / (error * math.sqrt(2))) if error > 0 else float(observed == 0)
        return Interval(estimate=observed, low=low, high=high, p_value=p_value)


def mean_of(value_N: Float[ndarray, " N"], *, groups: int = 1) -> Linearised:
    """A mean, whose influence is exact."""
    estimate = float(value_N.mean())
    return Linearised(estimate=estimate, influence=value_N - estimate, groups=groups)


def _common_length(arrays: Sequence[ndarray]) -> int:
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1:
        raise ValueError(f"arrays must be of one length, got {[len(array) for array in arrays]}")
    (length,) = lengths
    if length < 2:
        raise ValueError(f"an interval needs at least 2 documents, got {length}")
    return length


def _row_counts(num_units: int, resamples: int) -> list[int]:
    rows = max(1, _ENTRIES_AT_ONCE // num_units)
    return [min(rows, resamples - start) for start in range(0, resamples, rows)]


def resamples_of(num_units: int, resamples: int, seed: int, groups: int = 1) -> Iterator[Int[ndarray, "R N"]]:
    """The units' numbers in each resample, in blocks of rows; see `Resampled`."""
    if num_units % groups:
        raise ValueError(f"{num_units} documents are not {groups} blocks of one size")
    rng = np.random.default_rng([seed, 0])
    each = num_units // groups
    for rows in _row_counts(num_units, resamples):
        if groups == 1:
            yield rng.integers(num_units, size=(rows, num_units))
            continue
        block_RG1 = rng.integers(groups, size=(rows, groups, 1))
        yield (block_RG1 * each + rng.integers(each, size=(rows, groups, each))).reshape(rows, num_units)


def quantiles(value_R: Float[ndarray, " R"]) -> tuple[float, float]:
    """The ends of the central interval that holds 95 % of the values."""
    low, high = np.quantile(value_R, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)
