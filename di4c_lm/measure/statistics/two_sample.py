"""Distances between two samples of vectors, each with an interval and a permutation test.

Both are of the form 2 E d(x, y) - E d(x, x') - E d(y, y') for a distance d between documents, estimated without bias from all
pairs of distinct documents. With d the Euclidean distance it is the energy distance (Székely and Rizzo 2013); with half its square it is
the squared difference of the means, the MMD of the linear kernel (Gretton et al. 2012). Axes: N documents of both, R resamples.
"""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from di4c_lm.measure.statistics.bootstrap import Difference, quantiles, resamples_of


@final
@dataclass(frozen=True, kw_only=True)
class TwoSample:
    """A distance (about 0, either sign, where the laws agree), its 95 % bootstrap interval, and the permutation p-value."""

    estimate: float
    low: float
    high: float
    p_value: float


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
    """Columns shifted and scaled by the mean and spread of `by_MF`, the held-out text; a column constant there keeps its scale."""
    spread_F = by_MF.std(0)
    return (x_NF - by_MF.mean(0)) / np.where(spread_F > 1e-9, spread_F, 1.0)


def two_sample(
    d_NN: Float[ndarray, "N N"], num_first: int, *, permutations: int, resamples: int, seed: int, groups: int = 1
) -> TwoSample:
    """The distance of the first `num_first` documents (in `groups` blocks, one a seed) from the others.

    The p-value is one-sided: the share of exchanges of documents between the two that give a distance at least as large, the one observed
    among them. The interval resamples documents of both. Raises `ValueError` for fewer than 2 documents in either.
    """
    num_all = len(d_NN)
    num_second = num_all - num_first
    if min(num_first, num_second) < 2:
        raise ValueError(f"a distance needs at least 2 documents of each sample, got {num_first} and {num_second}")
    first_1N = (np.arange(num_all) < num_first)[None].astype(np.float64)
    estimate = float(_statistic(d_NN, first_1N, 1 - first_1N)[0])
    rng = np.random.default_rng([seed, 2])
    swapped_RN = rng.permuted(np.repeat(first_1N, permutations, 0), axis=1)
    null_R = _statistic(d_NN, swapped_RN, 1 - swapped_RN)
    slack = 1e-9 * float(np.abs(d_NN).mean())  # of rounding, where many exchanges give one and the same distance
    draws = []
    second = resamples_of(num_second, resamples, seed + 1)
    for index_RN, other_RM in zip(resamples_of(num_first, resamples, seed, groups), second, strict=False):
        rows = min(len(index_RN), len(other_RM))
        counts = _counts(index_RN[:rows], num_all), _counts(other_RM[:rows] + num_first, num_all)
        draws.append(_statistic(d_NN, *counts))
    low, high = quantiles(np.concatenate(draws), 0.95)
    p_value = (1 + int((null_R >= estimate - slack).sum())) / (1 + permutations)
    return TwoSample(estimate=estimate, low=min(low, estimate), high=max(high, estimate), p_value=p_value)


def distance_difference(
    d_NN: Float[ndarray, "N N"], num_each: int, *, permutations: int, resamples: int, seed: int
) -> Difference:
    """distance(a, reference) - distance(b, reference), its bootstrap interval and swap test, as `bootstrap.paired_difference`.

    `d_NN` covers `num_each` documents of a, as many of b, paired by number, then the reference.
    """
    num_all = len(d_NN)
    place_N = np.arange(num_all)
    reference_1N = (place_N >= 2 * num_each)[None].astype(np.float64)
    a_1N = (place_N < num_each)[None].astype(np.float64)
    b_1N = 1 - a_1N - reference_1N

    def difference(a_RN: ndarray, b_RN: ndarray, reference_RN: ndarray) -> ndarray:
        return _statistic(d_NN, a_RN, reference_RN) - _statistic(d_NN, b_RN, reference_RN)

    observed = float(difference(a_1N, b_1N, reference_1N)[0])
    swap_RM = np.random.default_rng([seed, 3]).random((permutations, num_each)) < 0.5
    rest_RK = np.zeros((permutations, num_all - 2 * num_each))
    swapped_a_RN = np.concatenate([~swap_RM, swap_RM, rest_RK], 1).astype(np.float64)
    swapped_b_RN = np.concatenate([swap_RM, ~swap_RM, rest_RK], 1).astype(np.float64)
    null_R = difference(swapped_a_RN, swapped_b_RN, np.repeat(reference_1N, permutations, 0))
    draws = []
    for index_RM in resamples_of(num_each, resamples, seed):
        rows = len(index_RM)
        pair = _counts(index_RM, num_all), _counts(index_RM + num_each, num_all)
        draws.append(difference(*pair, np.repeat(reference_1N, rows, 0)))
    low, high = quantiles(np.concatenate(draws), 0.95)
    extreme = int((np.abs(null_R) >= abs(observed) * (1 - 1e-9)).sum())
    return Difference(estimate=observed, low=low, high=high, p_value=(1 + extreme) / (1 + permutations))


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
