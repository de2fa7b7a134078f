"""Scores of images by features and class probabilities: Inception Score, kernel distance, and how two sets cover each other.

Axes: N images of a sample, M of the reference, F features, C classes.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, UInt8
from numpy import ndarray

from di4c_lm.measure.flow import Metric, Missing, Samples
from di4c_lm.measure.images.features import Embedded
from di4c_lm.measure.images.reference import some
from di4c_lm.measure.statistics.bootstrap import Distance, Linearised, mean_of
from di4c_lm.measure.statistics.frechet import extrapolated_frechet, linearised_frechet

_MIB_AT_ONCE = 32  # of a block of distances
Values: TypeAlias = dict[str, Any]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSamples(Samples):
    """Images of one sampler at one step count with their features, and the classes that were asked for."""

    images: UInt8[ndarray, "N H W C"]
    labels: Int64[ndarray, " N"] | None
    embedded: Embedded


def inception_score(probabilities_NC: Float[ndarray, "N C"], *, groups: int = 1) -> Linearised:
    """exp(mean_n KL(p_n ‖ mean p)), 1 to C (Salimans et al. 2016), of all images at once: the published ten splits only add bias.

    The influence of image n is the score times KL(p_n ‖ mean p) less its mean: the part through mean p vanishes. Raises `ValueError` for
    rows that are no probabilities.
    """
    from scipy.special import rel_entr

    wide_NC = probabilities_NC.astype(np.float64)
    if len(wide_NC) == 0 or (wide_NC < 0).any() or not np.allclose(wide_NC.sum(1), 1, atol=1e-4):
        raise ValueError("class probabilities must be at least 0 and sum to 1 for each of at least one image")
    wide_NC = wide_NC / wide_NC.sum(1, keepdims=True)
    mean_C = wide_NC.mean(0)
    kl_N = rel_entr(wide_NC, mean_C).sum(1)
    score = float(np.exp(max(0.0, kl_N.mean())))
    return Linearised(estimate=score, influence=score * (kl_N - kl_N.mean()), groups=groups)


def kernel_distance(
    features_NF: Float[ndarray, "N F"], reference_MF: Float[ndarray, "M F"], *, permutations: int, groups: int = 1
) -> Distance:
    """KID: the squared MMD of the kernel (x·y / F + 1)³, without bias at any N (Bińkowski et al. 2018), tested by permutation.

    Memory (N + M)² float64.
    """
    return Distance(
        vectors=features_NF.astype(np.float64),
        reference=reference_MF.astype(np.float64),
        between=_minus_kernel,
        permutations=permutations,
        groups=groups,
    )


def _minus_kernel(x_KF: Float[ndarray, "K F"]) -> Float[ndarray, "K K"]:
    from sklearn.metrics.pairwise import polynomial_kernel

    kernel_KK = polynomial_kernel(x_KF, degree=3)
    np.fill_diagonal(kernel_KK, 0.0)  # pairs of distinct images only
    return -kernel_KK


def cover(
    features_NF: Float[ndarray, "N F"],
    reference_MF: Float[ndarray, "M F"],
    *,
    k_manifold: int = 3,
    k_density: int = 5,
    groups: int = 1,
) -> dict[str, Linearised]:
    """`precision` and `recall` (Kynkäänniemi et al. 2019), `density` and `coverage` (Naeem et al. 2020).

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
    from sklearn.metrics import pairwise_distances_chunked

    centre_F = reference_MF.astype(np.float64).mean(0)
    sample, reference = features_NF - centre_F, reference_MF - centre_F
    (own_N,) = _radii(sample, k_manifold)
    manifold_M, density_M = _radii(reference, k_manifold, k_density)
    inside, held = [], []
    reached_M, covered_M = np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    for distance_nM in pairwise_distances_chunked(sample, reference, working_memory=_MIB_AT_ONCE):
        in_ball_nM: Bool[ndarray, "n M"] = distance_nM <= density_M
        own_n, own_N = own_N[: len(distance_nM)], own_N[len(distance_nM) :]
        inside.append((distance_nM <= manifold_M).any(1))
        held.append(in_ball_nM.sum(1) / k_density)
        covered_M |= in_ball_nM.any(0)
        reached_M |= (distance_nM <= own_n[:, None]).any(0)
    return {
        "precision": mean_of(np.concatenate(inside).astype(np.float64), groups=groups),
        "recall": mean_of(reached_M.astype(np.float64)),
        "density": mean_of(np.concatenate(held), groups=groups),
        "coverage": mean_of(covered_M.astype(np.float64)),
    }


def _radii(x_NF: Float[ndarray, "N F"], *ks: int) -> Float[ndarray, "R N"]:
    """Distance of each image to its k-th nearest other image, for each k."""
    from sklearn.metrics import pairwise_distances_chunked

    def nearest(distance_nN: Float[ndarray, "n N"], start: int) -> Float[ndarray, "n R"]:
        return np.partition(distance_nN, ks, axis=1)[:, ks]  # the 0-th is the image itself

    blocks = pairwise_distances_chunked(x_NF, reduce_func=nearest, working_memory=_MIB_AT_ONCE)
    return np.concatenate(list(blocks)).T * (1 + 1e-9)  # rounding does not leave that image outside


# The metrics: of samples and a bench with the feature network, the reference and settings, as `report` has it


def _frechet(samples: ImageSamples, bench: Any) -> Values:
    own, moments = samples.embedded.features, bench.reference.moments
    fid = linearised_frechet(own, moments, groups=samples.seeds)
    return {"fid": fid, "fid_infinity": extrapolated_frechet(own, moments)}


def _classes(samples: ImageSamples, bench: Any) -> Values:
    probabilities = samples.embedded.probabilities
    if probabilities is None:
        return {"inception_score": Missing(), "label_agreement": Missing()}
    score = inception_score(probabilities, groups=samples.seeds)
    own_classes = "held_out_accuracy" in bench.net.facts  # a classifier of these images: its classes are the samplers'
    if samples.labels is None or not own_classes:
        return {"inception_score": score, "label_agreement": Missing()}
    right_N = (probabilities.argmax(1) == samples.labels).astype(np.float64)
    return {"inception_score": score, "label_agreement": mean_of(right_N, groups=samples.seeds)}


def _cover(samples: ImageSamples, bench: Any) -> Values:
    settings, real, own = bench.settings, bench.reference.features, samples.embedded.features
    if real is None:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), Missing())
    return cover(
        own[_some_of_each(len(own), settings.neighbours, samples.seeds)],
        real[some(len(real), settings.neighbours)],
        k_manifold=settings.k_manifold,
        k_density=settings.k_density,
        groups=samples.seeds,
    )


def _kernel(samples: ImageSamples, bench: Any) -> Values:
    settings, real, own = bench.settings, bench.reference.features, samples.embedded.features
    if real is None or settings.permutations == 0:
        return {"kid": Missing(tested=True)}
    kid = kernel_distance(
        own[_some_of_each(len(own), settings.kernel_images, samples.seeds)],
        real[some(len(real), settings.kernel_images)],
        permutations=settings.permutations,
        groups=samples.seeds,
    )
    return {"kid": kid}


def _some_of_each(count: int, limit: int, groups: int) -> Int[ndarray, " n"]:
    """At most `limit` numbers, as many of each of `groups` equal blocks."""
    each = count // groups
    chosen = some(each, max(2, limit // groups))
    return (np.arange(groups)[:, None] * each + chosen).reshape(-1)


METRICS = (
    Metric(
        measure=_frechet,
        part="features",
        headings={"fid": "FID"},
        details={"fid_infinity": "FID at ∞"},
        compared=("fid",),
    ),
    Metric(
        measure=_classes,
        part="classes",
        headings={"inception_score": "IS"},
        details={"label_agreement": "class right"},
        compared=("inception_score",),
    ),
    Metric(
        measure=_cover,
        part="neighbours",
        headings={"precision": "precision", "recall": "recall"},
        details={"density": "density", "coverage": "coverage"},
    ),
    Metric(measure=_kernel, part="kernel", headings={"kid": "KID"}),
)
