"""Quantities of one sample, each with its interval, and with a test of its difference from that of another: by resampling units.

Units are documents or images. A `Statistic` reduces the last axis, units, of arrays of shape (N,) or of their resamples (R, N).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, TypeAlias, final

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

Statistic: TypeAlias = Callable[..., ndarray]
POWER, LEVEL = 0.8, 0.05  # of the smallest difference that samples are said to show
WIDTH = 2 * NormalDist().inv_cdf(1 - LEVEL / 2)  # of a 95 % interval, in standard errors
_ENTRIES_AT_ONCE = 1 << 22  # of an index array: 32 MiB


@final
@dataclass(frozen=True, kw_only=True)
class Interval:
    """A statistic of the whole sample, or a difference of two, its 95 % interval and, where it is tested, the p-value.

    `error` is the standard error, the spread over resamples.
    """

    estimate: float
    low: float
    high: float
    error: float
    p_value: float | None = None

    @property
    def detectable(self) -> float:
        """See `smallest_difference`."""
        return smallest_difference(self.error)


def smallest_difference(error: float) -> float:
    """The smallest true difference, of either sign, that a test at the level `LEVEL` shows in `POWER` of all cases.

    (z_{1 - level/2} + z_power) times the standard error of the difference, about 2.80 of it (Cohen 1988, section 2): its distribution is
    taken to be normal.
    """
    return (WIDTH / 2 + NormalDist().inv_cdf(POWER)) * error


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
    tested: ClassVar[bool] = False

    def interval(self, *, resamples: int, seed: int) -> Interval:
        """The percentile bootstrap interval (Efron 1979).

        Raises `ValueError` where N < 2, the arrays differ in length, or the blocks are not equal.
        """
        num_units = _common_length(self.arrays)
        found = [
            self.statistic(*(a[index_RN] for a in self.arrays))
            for index_RN in resamples_of(num_units, resamples, seed, self.groups)
        ]
        return Interval(estimate=float(self.statistic(*self.arrays)), **_spread(np.concatenate(found)))

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
        rng = np.random.default_rng([seed, 1])
        extreme = 0
        for rows in _row_counts(num_units, resamples):
            swap_RN = rng.random((rows, num_units)) < 0.5
            swapped_a = [np.where(swap_RN, y, x) for x, y in zip(a, b, strict=True)]
            swapped_b = [np.where(swap_RN, x, y) for x, y in zip(a, b, strict=True)]
            difference_R = statistic(*swapped_a) - statistic(*swapped_b)
            extreme += int((np.abs(difference_R) >= abs(observed) * (1 - 1e-12)).sum())
        spread = _spread(np.concatenate(found))
        return Interval(estimate=observed, **spread, p_value=(1 + extreme) / (1 + resamples))


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
    tested: ClassVar[bool] = False

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
        spread = _spread(observed + (a_R - b_R))
        error = spread["error"]
        p_value = math.erfc(abs(observed) / (error * math.sqrt(2))) if error > 0 else float(observed == 0)
        return Interval(estimate=observed, **spread, p_value=p_value)


def mean_of(value_N: Float[ndarray, " N"], *, groups: int = 1) -> Linearised:
    """A mean, whose influence is exact."""
    estimate = float(value_N.mean())
    return Linearised(estimate=estimate, influence=value_N - estimate, groups=groups)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Distance:
    """How far a sample's documents are from the reference's, about 0, either sign, where the distributions agree.

    It is 2 E d(x, y) - E d(x, x') - E d(y, y') for a distance d between documents, estimated without bias from all pairs of distinct ones.
    With d the Euclidean distance it is the energy distance (Székely and Rizzo 2013); with half its square it is the squared difference of
    the means, the MMD of the linear kernel (Gretton et al. 2012).

    `between` takes the vectors of all documents, the sample's before the reference's, to the distances of each pair. The sample is `groups`
    equal blocks, one a seed. `permutations`: of the test.
    """

    vectors: Float[ndarray, "N F"]
    reference: Float[ndarray, "M F"]
    between: Callable[[Float[ndarray, "K F"]], Float[ndarray, "K K"]]
    permutations: int
    groups: int = 1
    tested: ClassVar[bool] = True

    def interval(self, *, resamples: int, seed: int) -> Interval:
        """The distance with the one-sided p-value of a permutation test.

        That is the share of exchanges of documents between the two sets that give a distance at least as large, the one observed among
        them. The interval resamples documents of both. Raises `ValueError` for fewer than 2 documents in either.
        """
        num_first, num_second = len(self.vectors), len(self.reference)
        if min(num_first, num_second) < 2:
            raise ValueError(f"a distance needs at least 2 documents of each sample, got {num_first} and {num_second}")
        d_NN = self.between(np.concatenate([self.vectors, self.reference]))
        num_all = len(d_NN)
        first_1N = (np.arange(num_all) < num_first)[None].astype(np.float64)
        estimate = float(_statistic(d_NN, first_1N, 1 - first_1N)[0])
        rng = np.random.default_rng([seed, 2])
        swapped_RN = rng.permuted(np.repeat(first_1N, self.permutations, 0), axis=1)
        null_R = _statistic(d_NN, swapped_RN, 1 - swapped_RN)
        slack = 1e-9 * float(np.abs(d_NN).mean())  # of rounding, where many exchanges give one and the same distance
        found = []
        second = resamples_of(num_second, resamples, seed + 1)
        for index_RN, other_RM in zip(resamples_of(num_first, resamples, seed, self.groups), second, strict=False):
            rows = min(len(index_RN), len(other_RM))
            counts = _counts(index_RN[:rows], num_all), _counts(other_RM[:rows] + num_first, num_all)
            found.append(_statistic(d_NN, *counts))
        spread = _spread(np.concatenate(found))
        spread |= {"low": min(spread["low"], estimate), "high": max(spread["high"], estimate)}
        p_value = (1 + int((null_R >= estimate - slack).sum())) / (1 + self.permutations)
        return Interval(estimate=estimate, **spread, p_value=p_value)

    def minus(self, other: "Distance", *, resamples: int, seed: int) -> Interval:
        """The difference of two distances from one reference, of samples of equal size, with the swap test of `Resampled.minus`."""
        d_NN = self.between(np.concatenate([self.vectors, other.vectors, self.reference]))
        num_all, num_each = len(d_NN), len(self.vectors)
        place_N = np.arange(num_all)
        reference_1N = (place_N >= 2 * num_each)[None].astype(np.float64)
        a_1N = (place_N < num_each)[None].astype(np.float64)
        b_1N = 1 - a_1N - reference_1N

        def difference(a_RN: ndarray, b_RN: ndarray) -> ndarray:
            reference_RN = np.repeat(reference_1N, len(a_RN), 0)
            return _statistic(d_NN, a_RN, reference_RN) - _statistic(d_NN, b_RN, reference_RN)

        observed = float(difference(a_1N, b_1N)[0])
        swap_RM = np.random.default_rng([seed, 3]).random((self.permutations, num_each)) < 0.5
        rest_RK = np.zeros((self.permutations, num_all - 2 * num_each))
        swapped = (np.concatenate([one, ~one, rest_RK], 1).astype(np.float64) for one in (~swap_RM, swap_RM))
        null_R = difference(*swapped)
        found = [
            difference(_counts(index_RM, num_all), _counts(index_RM + num_each, num_all))
            for index_RM in resamples_of(num_each, resamples, seed)
        ]
        extreme = int((np.abs(null_R) >= abs(observed) * (1 - 1e-9)).sum())
        spread = _spread(np.concatenate(found))
        return Interval(estimate=observed, **spread, p_value=(1 + extreme) / (1 + self.permutations))


Quantity: TypeAlias = Resampled | Linearised | Distance
"""Its `interval` has a p-value where it is `tested`; `minus` compares it with the same of another sample."""


def euclidean(x_NF: Float[ndarray, "N F"]) -> Float[ndarray, "N N"]:
    """|x - x'|: makes the energy distance."""
    return np.sqrt(2 * half_squared(x_NF))


def half_squared(x_NF: Float[ndarray, "N F"]) -> Float[ndarray, "N N"]:
    """|x - x'|² / 2: makes the squared distance of the means."""
    wide_NF = x_NF.astype(np.float64)
    square_N = (wide_NF**2).sum(1)
    found_NN = (square_N[:, None] + square_N[None]) / 2 - wide_NF @ wide_NF.T
    np.fill_diagonal(found_NN, 0.0)
    return np.maximum(found_NN, 0.0)


def standardise(x_NF: Float[ndarray, "N F"], by_MF: Float[ndarray, "M F"]) -> Float[ndarray, "N F"]:
    """Columns shifted and scaled by the mean and spread of `by_MF`, the validation set; a column constant there keeps its scale."""
    spread_F = by_MF.std(0)
    return (x_NF - by_MF.mean(0)) / np.where(spread_F > 1e-9, spread_F, 1.0)


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


def _spread(value_R: Float[ndarray, " R"]) -> dict[str, float]:
    """`low`, `high` and `error` of an `Interval`, of the values over resamples."""
    low, high = quantiles(value_R)
    return {"low": low, "high": high, "error": float(value_R.std())}


def _counts(index_RK: Int[ndarray, "R K"], num_all: int) -> Float[ndarray, "R N"]:
    """How often each document is in each resample."""
    counts_RN = np.zeros((len(index_RK), num_all))
    np.add.at(counts_RN, (np.arange(len(index_RK))[:, None], index_RK), 1.0)
    return counts_RN


def _statistic(
    d_NN: Float[ndarray, "N N"], a_RN: Float[ndarray, "R N"], b_RN: Float[ndarray, "R N"]
) -> Float[ndarray, " R"]:
    """2 E d(a, b) - E d(a, a') - E d(b, b') over pairs of distinct documents, for samples given by counts."""
    from_a_RN = a_RN @ d_NN
    within_a_R = (from_a_RN * a_RN).sum(1) / _pairs(a_RN)
    within_b_R = ((b_RN @ d_NN) * b_RN).sum(1) / _pairs(b_RN)
    return 2 * (from_a_RN * b_RN).sum(1) / (a_RN.sum(1) * b_RN.sum(1)) - within_a_R - within_b_R


def _pairs(counts_RN: Float[ndarray, "R N"]) -> Float[ndarray, " R"]:
    return np.maximum(counts_RN.sum(1) ** 2 - (counts_RN**2).sum(1), 1.0)
