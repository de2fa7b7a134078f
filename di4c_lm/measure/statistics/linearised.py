"""Intervals of a statistic that is costly to compute, or biased in small samples, through its influence function.

To first order a statistic T of a sample of N units is its value there plus the mean of its influence function over any resample, so that
one decomposition serves every resample. It also keeps the interval about the estimate: a plain bootstrap of the Fréchet distance, whose
bias grows where a resample repeats units, lies above it.
"""

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from di4c_lm.measure.statistics.bootstrap import Difference, Interval, interval, quantiles, resamples_of


@final
@dataclass(frozen=True, kw_only=True)
class Linearised:
    """A statistic of N units and the influence of each, of mean 0. The units are `groups` equal blocks, one a seed."""

    estimate: float
    influence: Float[ndarray, " N"]
    groups: int = 1


def mean_of(value_N: Float[ndarray, " N"], *, groups: int = 1) -> Linearised:
    """A mean, whose influence is exact."""
    estimate = float(value_N.mean())
    return Linearised(estimate=estimate, influence=value_N - estimate, groups=groups)


def interval_of(statistic: Linearised, *, resamples: int, seed: int, level: float = 0.95) -> Interval:
    """Bootstrap interval; units, and seeds where there are several, are resampled as in `bootstrap.interval`."""
    return interval(
        lambda influence: statistic.estimate + influence.mean(-1),
        (statistic.influence,),
        resamples=resamples,
        seed=seed,
        level=level,
        groups=statistic.groups,
    )


def difference_of(a: Linearised, b: Linearised, *, resamples: int, seed: int) -> Difference:
    """a - b for independent samples: 95 % bootstrap interval, and the two-sided p-value of a normal law with the bootstrap's spread."""
    draws = [
        np.concatenate(
            [one.influence[index].mean(-1) for index in resamples_of(len(one.influence), resamples, s, one.groups)]
        )
        for one, s in ((a, seed), (b, seed + 1))
    ]
    observed = a.estimate - b.estimate
    spread_R = draws[0] - draws[1]
    low, high = quantiles(observed + spread_R, 0.95)
    error = float(spread_R.std())
    p_value = math.erfc(abs(observed) / (error * math.sqrt(2))) if error > 0 else float(observed == 0)
    return Difference(estimate=observed, low=low, high=high, p_value=p_value)
