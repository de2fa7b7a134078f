"""Scores of images by features and class probabilities: Inception Score, kernel distance, and how two sets cover each other.

Axes: N images of a sample, M of the reference, F features, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from di4c_lm.measure.statistics.linearised import Linearised, mean_of
from di4c_lm.measure.statistics.two_sample import TwoSample, two_sample

_ENTRIES_AT_ONCE = 1 << 22  # of a block of distances: 32 MiB


def inception_score(probabilities_NC: Float[ndarray, "N C"], *, groups: int = 1) -> Linearised:
    """exp(mean_n KL(p_n ‖ mean p)), 1 to C (Salimans et al. 2016), of all images at once: the published ten splits only add bias.

    The influence of image n is the score times KL(p_n ‖ mean p) less its mean: the part through mean p vanishes. Raises `ValueError` for
    rows that are no probabilities.
    """
    wide_NC = probabilities_NC.astype(np.float64)
    if len(wide_NC) == 0 or (wide_NC < 0).any() or not np.allclose(wide_NC.sum(1), 1, atol=1e-4):
        raise ValueError("class probabilities must be at least 0 and sum to 1 for each of at least one image")
    wide_NC = wide_NC / wide_NC.sum(1, keepdims=True)
    mean_C = wide_NC.mean(0)
    ratio_NC = wide_NC / np.where(mean_C > 0, mean_C, 1.0)
    kl_N = (wide_NC * np.log(np.where(ratio_NC > 0, ratio_NC, 1.0))).sum(1)
    score = float(np.exp(max(0.0, kl_N.mean())))
    return Linearised(estimate=score, influence=score * (kl_N - kl_N.mean()), groups=groups)


def kernel_distance(
    features_NF: Float[ndarray, "N F"],
    reference_MF: Float[ndarray, "M F"],
    *,
    permutations: int,
    resamples: int,
    seed: int,
    groups: int = 1,
) -> TwoSample:
    """KID: the squared MMD of the kernel (x·y / F + 1)³, without bias at any N (Bińkowski et al. 2018), tested by permutation.

    Memory (N + M)² float64. Raises `ValueError` for fewer than 2 images in either.
    """
    both = np.concatenate([features_NF, reference_MF]).astype(np.float64)
    kernel = (both @ both.T / both.shape[1] + 1) ** 3
    np.fill_diagonal(kernel, 0.0)  # pairs of distinct images only
    return two_sample(
        -kernel, len(features_NF), permutations=permutations, resamples=resamples, seed=seed, groups=groups
    )


@final
@dataclass(frozen=True, kw_only=True)
class Cover:
    """How far a sample's images lie among the reference's, and how far they reach all of them."""

    precision: Linearised
    recall: Linearised
    density: Linearised
    coverage: Linearised


def cover(
    features_NF: Float[ndarray, "N F"],
    reference_MF: Float[ndarray, "M F"],
    *,
    k_manifold: int = 3,
    k_density: int = 5,
    groups: int = 1,
) -> Cover:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A set's manifold is the union of balls about its images, each as far as that image's k-th nearest other image of the set. Precision:
    share of the sample in the reference's manifold; recall: the other way round. Density: mean number of the reference's balls that hold
    an image of the sample, over k; coverage: share of the reference's balls that hold one. The units behind the intervals are the images
    whose share is taken: the sample's for precision and density, the reference's for the others. Raises `ValueError` for sets of at most k.
    """
    least = max(k_manifold, k_density) + 1
    if min(len(features_NF), len(reference_MF)) < least:
        raise ValueError(
            f"neighbours up to the {least - 1}th need at least {least} images of each set, "
            f"found {len(features_NF)} and {len(reference_MF)}"
        )
    sample, reference = (part.astype(np.float64) for part in (features_NF, reference_MF))
    (own_N,) = _radii(sample, (k_manifold,))
    manifold_M, density_M = _radii(reference, (k_manifold, k_density))
    inside_N, held_N = np.zeros(len(sample), bool), np.zeros(len(sample))
    reached_M, covered_M = np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    for rows, squared_nM in _squared_distances(sample, reference):
        inside_N[rows] = (squared_nM <= manifold_M).any(1)
        in_ball_nM: Bool[ndarray, "n M"] = squared_nM <= density_M
        held_N[rows] = in_ball_nM.sum(1) / k_density
        covered_M |= in_ball_nM.any(0)
        reached_M |= (squared_nM <= own_N[rows, None]).any(0)
    return Cover(
        precision=mean_of(inside_N.astype(np.float64), groups=groups),
        recall=mean_of(reached_M.astype(np.float64)),
        density=mean_of(held_N, groups=groups),
        coverage=mean_of(covered_M.astype(np.float64)),
    )


def _radii(x_NF: Float[ndarray, "N F"], ks: tuple[int, ...]) -> list[Float[ndarray, " N"]]:
    """Squared distance of each image to its k-th nearest other image, for each k."""
    found = [np.empty(len(x_NF)) for _ in ks]
    for rows, squared_nN in _squared_distances(x_NF, x_NF):
        squared_nN[np.arange(len(squared_nN)), np.arange(rows.start, rows.start + len(squared_nN))] = np.inf
        nearest = np.partition(squared_nN, [k - 1 for k in ks], axis=1)
        for radius_N, k in zip(found, ks, strict=True):
            radius_N[rows] = nearest[:, k - 1]
    return found


def _squared_distances(
    x_NF: Float[ndarray, "N F"], y_MF: Float[ndarray, "M F"]
) -> Iterator[tuple[slice, Float[ndarray, "n M"]]]:
    """|x - y|² in blocks of rows."""
    centre_F = y_MF.mean(0)
    x_NF, y_MF = x_NF - centre_F, y_MF - centre_F
    square_N, square_M = (x_NF**2).sum(1), (y_MF**2).sum(1)
    step = max(1, _ENTRIES_AT_ONCE // len(y_MF))
    for start in range(0, len(x_NF), step):
        rows = slice(start, start + step)
        yield rows, np.maximum(square_N[rows, None] + square_M - 2 * x_NF[rows] @ y_MF.T, 0.0)


def some(count: int, limit: int) -> Int[ndarray, " n"]:
    """At most `limit` of the numbers 0..count - 1, always the same ones, in order; drawn, since classes may come in turns."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])
