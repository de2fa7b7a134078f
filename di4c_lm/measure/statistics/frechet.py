"""The Fréchet distance between Gaussians fitted to two sets of features: FID, where the features are Inception's (Heusel et al. 2017).

Everything is float64, and roots are of symmetric matrices, by their eigenvalues: no complex number appears. Axes: N images, F features.
"""

import functools
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Float64
from numpy import ndarray

from di4c_lm.measure.statistics.bootstrap import Linearised


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean and covariance (of N - 1) of `count` feature vectors."""

    mean: Float64[ndarray, " F"]
    covariance: Float64[ndarray, "F F"]
    count: int

    def __post_init__(self) -> None:
        finite = np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()
        if not finite or not np.allclose(self.covariance, self.covariance.T, atol=1e-6 * np.abs(self.covariance).max()):
            raise ValueError("moments of features must be finite and their covariance symmetric")

    @functools.cached_property
    def root(self) -> Float64[ndarray, "F F"]:
        """Σ^½."""
        return _root(self.covariance)


def moments(features_NF: Float[ndarray, "N F"]) -> Moments:
    """Raises `ValueError` for fewer than 2 vectors and for values that are not finite."""
    if len(features_NF) < 2:
        raise ValueError(f"a covariance needs at least 2 images, found {len(features_NF)}")
    wide_NF = features_NF.astype(np.float64)
    mean_F = wide_NF.mean(0)
    centred_NF = wide_NF - mean_F
    return Moments(mean=mean_F, covariance=centred_NF.T @ centred_NF / (len(wide_NF) - 1), count=len(wide_NF))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|μ_a - μ_b|² + tr(Σ_a + Σ_b - 2 (Σ_a^½ Σ_b Σ_a^½)^½) (Dowson and Landau 1982), at least 0.

    The trace of that root is the sum of the singular values of Σ_a^½ Σ_b^½, which keeps the digits that squaring would lose.
    Raises `ValueError` for features of different widths.
    """
    return _distance(a, b, np.linalg.svd(_product(a, b), compute_uv=False))


def _product(a: Moments, b: Moments) -> Float64[ndarray, "F F"]:
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"moments of {len(a.mean)} and of {len(b.mean)} features cannot be compared")
    return a.root @ b.root


def _distance(a: Moments, b: Moments, common_F: Float64[ndarray, " F"]) -> float:
    spread = np.trace(a.covariance) + np.trace(b.covariance)
    return max(0.0, float(((a.mean - b.mean) ** 2).sum() + spread - 2 * common_F.sum()))


def linearised_frechet(features_NF: Float[ndarray, "N F"], reference: Moments, *, groups: int = 1) -> Linearised:
    """The distance of a sample from `reference`, which is held fixed, with the influence of each image.

    With T = Σ_r^½ (Σ_r^½ Σ Σ_r^½)^-½ Σ_r^½, the linear map that carries the sample's Gaussian to the reference's, and c = x - μ, the
    derivative along x is 2 (μ - μ_r)·c + cᵀ(I - T)c less its mean (the derivative of the squared Wasserstein distance of Gaussians).
    Raises `ValueError` as `moments` and `frechet_distance` do.
    """
    own = moments(features_NF)
    vectors_FF, common_F, _ = np.linalg.svd(_product(reference, own))
    present_F = common_F > _rounding(common_F)
    inverse_F = np.where(present_F, 1 / np.where(present_F, common_F, 1.0), 0.0)
    half_FF = reference.root @ vectors_FF
    centred_NF = features_NF.astype(np.float64) - own.mean
    carried_N = ((centred_NF @ half_FF) ** 2 * inverse_F).sum(1)
    value_N = 2 * centred_NF @ (own.mean - reference.mean) + (centred_NF**2).sum(1) - carried_N
    return Linearised(estimate=_distance(own, reference, common_F), influence=value_N - value_N.mean(), groups=groups)


def extrapolated_frechet(features_NF: Float[ndarray, "N F"], reference: Moments) -> float | None:
    """The distance at infinitely many images: a line in 1 / N through all, halves and quarters (after Chong and Forsyth 2020).

    It takes away the bias of the sample's own size, not the reference's, and may be a little below 0. None where a quarter is not larger
    than the number of features, since the bias is no line there. The parts are random, always the same way.
    """
    num_images, width = features_NF.shape
    if num_images // 4 <= width:
        return None
    shuffled_NF = features_NF[np.random.default_rng(0).permutation(num_images)]
    places, values = [], []
    for parts in (1, 2, 4):
        cuts = [moments(shuffled_NF[start::parts]) for start in range(parts)]
        places.append(float(np.mean([1 / cut.count for cut in cuts])))
        values.append(float(np.mean([frechet_distance(cut, reference) for cut in cuts])))
    return float(np.polyfit(places, values, 1)[1])


def _root(matrix_FF: Float64[ndarray, "F F"]) -> Float64[ndarray, "F F"]:
    """The root of a matrix that is symmetric and not negative, but for rounding, which is taken away."""
    value_F, vectors_FF = np.linalg.eigh((matrix_FF + matrix_FF.T) / 2)
    kept_F = np.where(value_F > _rounding(value_F), value_F, 0.0)
    return (vectors_FF * np.sqrt(kept_F)) @ vectors_FF.T


def _rounding(value_F: Float64[ndarray, " F"]) -> float:
    """What eigenvalues or singular values of a matrix cannot tell from 0."""
    return float(np.abs(value_F).max()) * len(value_F) * float(np.finfo(np.float64).eps)
