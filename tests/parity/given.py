"""A prediction given by its logits, and Di4C's terms of it, through the same code that trains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from di4c_lm.losses.di4c import Alpha, correlation, distillation_term
from di4c_lm.losses.reading import Reading, mixture_marginals, read_mixture
from di4c_lm.processes.denoiser import OutputHead, Positions
from tests.parity.golden import Computed, Tolerance

ALPHA_KINDS: dict[str, Alpha] = {"sigmoid": "sigmoid", "linear": "linear", "const": "constant"}  # by published name
GRADIENT = Tolerance(atol=1e-6, rtol=1e-4)


def loss_tolerance(num_positions: int, num_states: int) -> Tolerance:
    """rtol 1e-5, and the float32 rounding of sums of D log-probabilities of about log S that a component is a difference of."""
    return Tolerance(atol=1e-7 * num_positions * math.log(num_states), rtol=1e-5)


@final
@dataclass(frozen=True)
class GivenLogits(OutputHead):
    """The output head whose features are the logits themselves."""

    num_states: int
    parameters: tuple[Tensor, ...] = ()

    def logits(self, features_NH: Tensor, positions_N: Tensor) -> Tensor:
        """A fresh copy, as readers may use it up."""
        return features_NH.clone()

    def vjp(
        self, features_NH: Tensor, positions_N: Tensor, grad_NS: Tensor, parameter_grads: Sequence[Tensor | None]
    ) -> Tensor:
        """The gradient itself."""
        return grad_NS


def marginals_at(logits_BLDS: Tensor, positions: Positions) -> Tensor:
    """The mixture's marginals at the positions, (M, S)."""
    output_head = GivenLogits(logits_BLDS.shape[-1])
    return mixture_marginals(positions.features(logits_BLDS), positions.position, output_head)


def check_values(
    features: Tensor, output_head: OutputHead, targets: Tensor, distributions: Sequence[Tensor] = ()
) -> None:
    """Raise `ValueError`, naming what cannot be: a file may hold anything."""
    if not bool(features.isfinite().all()):
        raise ValueError(f"features must be finite, got NaN or infinity in shape {tuple(features.shape)}")
    for number, q_MS in enumerate(distributions):
        sums_M = q_MS.sum(1)
        if not bool(((sums_M - 1).abs() < 1e-3).all() and (q_MS >= 0).all()):
            raise ValueError(
                f"distributions[{number}] must be probabilities that sum to 1 over S, got shape {tuple(q_MS.shape)} with sums from "
                f"{sums_M.min():.4g} to {sums_M.max():.4g}"
            )
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < output_head.num_states:
        raise ValueError(
            f"targets must be states in [0, {output_head.num_states}), got {int(targets.min())} to {int(targets.max())} in shape "
            f"{tuple(targets.shape)}"
        )


def read_given(
    logits_BLDS: Tensor,
    positions: Positions,
    targets_BTD: Tensor,
    distributions: Sequence[Tensor],
    *,
    components: bool,
) -> Reading:
    """The reading of given logits, T targets an example."""
    features_MLS, output_head = positions.features(logits_BLDS), GivenLogits(logits_BLDS.shape[-1])
    targets_MT = targets_BTD[positions.example, :, positions.position]
    check_values(features_MLS, output_head, targets_MT, distributions)
    given = features_MLS, positions.position, output_head, targets_MT, distributions
    return read_mixture(*given, component_divergence=components).summed(positions)


@dataclass(frozen=True)
class Parts:
    """The reference's components of one run, (B,) each; `gate` is what its distillation and consistency losses are multiplied with."""

    reading: Reading
    alpha: Tensor
    use_cv: bool
    distil_gate: Tensor
    consistency_gate: Tensor
    consistency_taken: Tensor | float = 1.0  # 0 where the reference leaves the parts of the consistency loss at 0

    @property
    def data_corr(self) -> Tensor:
        """Cor(x_0), by the published switch: without the control variate its first half."""
        return self._corr(self.reading.joint[:, 0], self.reading.product[:, 0])

    @property
    def data_marginal(self) -> Tensor:
        """KL(teacher || marginal); the published switch takes it out together with the control variates."""
        return self.reading.divergence[:, 0] * self.use_cv

    @property
    def consistency_corr(self) -> Tensor:
        """The mean of Cor over the samples."""
        joint_B, product_B = self.reading.joint[:, 1:].mean(1), self.reading.product[:, 1:].mean(1)
        return self._corr(joint_B, product_B) * self.consistency_taken

    @property
    def consistency_marginal(self) -> Tensor:
        """KL(u-side marginal || marginal)."""
        return self.reading.divergence[:, -1] * self.use_cv * self.consistency_taken

    @property
    def data(self) -> Tensor:
        """The data loss."""
        return self.alpha * self.data_corr + self.data_marginal

    @property
    def consistency(self) -> Tensor:
        """The consistency loss behind its gate."""
        return self.consistency_gate * (self.consistency_corr + self.consistency_marginal)

    @property
    def distil(self) -> Tensor:
        """The distillation loss behind its gate."""
        return self.distil_gate * distillation_term(self.reading)

    @property
    def total(self) -> Tensor:
        """The loss."""
        return (self.distil + self.data + self.consistency).mean()

    def computed(self, run: str, tolerance: Tolerance) -> Iterator[Computed]:
        """The arrays that every loss case holds, by their published names."""
        named = {
            "distil_loss": self.distil,
            "data_loss": self.data,
            "data_loss_cor": self.data_corr,
            "data_loss_indep": self.data_marginal,
            "consis_loss": self.consistency,
            "consis_loss_cor": self.consistency_corr,
            "consis_loss_indep": self.consistency_marginal,
            "time_coeff": self.alpha,
            "loss": self.total,
        }
        for name, value in named.items():
            yield Computed(f"{run}_{name}", value, tolerance)

    def _corr(self, joint_B: Tensor, product_B: Tensor) -> Tensor:
        return correlation(joint_B, product_B) if self.use_cv else -joint_B


def leaf(logits: Tensor) -> Tensor:
    """A copy that collects a gradient."""
    return logits.detach().clone().requires_grad_()


def everywhere(x: Tensor) -> Positions:
    """All positions."""
    return Positions.where(torch.ones_like(x, dtype=torch.bool))
