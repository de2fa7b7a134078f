"""A prediction given by its logits, and Di4C's terms of it, through the same code that trains."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from di4c_lm.losses.di4c import Terms, UpperSide, di4c_terms
from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import mixture_marginals
from di4c_lm.losses.weights import Alpha
from di4c_lm.processes.denoiser import OutputHead
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


def law_at(logits_BLDS: Tensor, positions: Positions) -> Tensor:
    """The mixture's marginal at the positions, (M, S)."""
    output_head = GivenLogits(logits_BLDS.shape[-1])
    return mixture_marginals(logits_BLDS[positions.example, :, positions.position], positions.position, output_head)


def terms_of(
    logits_BLDS: Tensor, positions: Positions, x_0: Tensor, teacher_MS: Tensor, upper: UpperSide | None, *, distil: bool
) -> Terms:
    """Di4C's terms of given logits."""
    features_MLS = logits_BLDS[positions.example, :, positions.position]
    output_head = GivenLogits(logits_BLDS.shape[-1])
    return di4c_terms(
        features_MLS, output_head, positions, positions.gather(x_0), teacher_MS, upper, distil=distil, validate=True
    )


@dataclass(frozen=True)
class Parts:
    """The reference's components of one run, (B,) each; `gate` is what its distillation and consistency losses are multiplied with."""

    terms: Terms
    alpha: Tensor
    use_cv: bool
    distil_gate: Tensor
    consistency_gate: Tensor

    @property
    def data_corr(self) -> Tensor:
        """Cor(x_0), by the published switch: without the control variate its first half."""
        return self.terms.data_corr if self.use_cv else self.terms.data_joint

    @property
    def data_marginal(self) -> Tensor:
        """KL(teacher || marginal); the published switch takes it out together with the control variates."""
        return self.terms.data_marginal * self.use_cv

    @property
    def consistency_corr(self) -> Tensor:
        """The mean of Cor over the samples."""
        return self.terms.consistency_corr if self.use_cv else self.terms.consistency_joint

    @property
    def consistency_marginal(self) -> Tensor:
        """KL(u-side marginal || marginal)."""
        return self.terms.consistency_marginal * self.use_cv

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
        return self.distil_gate * self.terms.distil

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


def leaf(logits: Tensor) -> Tensor:
    """A copy that collects a gradient."""
    return logits.detach().clone().requires_grad_()


def everywhere(x: Tensor) -> Positions:
    """All positions."""
    return Positions.where(torch.ones_like(x, dtype=torch.bool))
