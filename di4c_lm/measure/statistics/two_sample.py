"""Distances of a sample of vectors from a reference, each with an interval and a permutation test.

Both are of the form 2 E d(x, y) - E d(x, x') - E d(y, y') for a distance d between documents, estimated without bias from all
pairs of distinct documents. With d the Euclidean distance it is the energy distance (Székely and Rizzo 2013); with half its square it is
the squared difference of the means, the MMD of the linear kernel (Gretton et al. 2012). Axes: N documents of both, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from di4c_lm.measure.statistics.bootstrap import Interval, quantiles, resamples_of


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Distance:
    """How far a sample's documents are from the reference's, about 0, either sign, where the distributions agree.

    `between` takes the vectors of all documents, the sample's before the reference's, to the distances of each pair. The sample is `groups`
    equal blocks, one a seed. `permutations`: of the test.
    """

    vectors: Float[ndarray, "N F"]
    reference: Float[ndarray, "M F"]
    between: Callable[[Float[ndarray, "K F"]], Float[ndarray, "K K"]]
    permutations: int
    groups: int = 1
    tested = True

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
        low, high = quantiles(np.concatenate(found))
        p_value = (1 + int((null_R >= estimate - slack).sum())) / (1 + self.permutations)
        return Interval(estimate=estimate, low=min(low, estimate), high=max(high, estimate), p_value=p_value)

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
        low, high = quantiles(np.concatenate(found))
        extreme = int((np.abs(null_R) >= abs(observed) * (1 - 1e-9)).sum())
        return Interval(estimate=observed, low=low, high=high, p_value=(1 + extreme) / (1 + self.permutations))


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
