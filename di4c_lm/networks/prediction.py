"""What a network says of x_0 in L rows of equal weight, and how a loss reads it: joint, marginals and divergences, in one pass."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.losses.di4c import Sites
from di4c_lm.losses.mixture import mean_law, read_mixture
from di4c_lm.processes.denoiser import OutputHead, Prediction


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a mixture says of T sequences a example and of R distributions a position, in nats; differentiable.

    With p(x) = E_λ Π_d p(x^d | x_t; λ) over the positions read and m^d its marginals.
    """

    joint: Float64[Tensor, "B T"]  # log p(x)
    product: Float64[Tensor, "B T"]  # Σ_d log m^d(x^d)
    divergence: Float64[Tensor, "B R"]  # Σ_d KL(q_r^d ‖ m^d)
    component_divergence: Float64[Tensor, " B"]  # E_λ Σ_d KL(q_0^d ‖ p^d(· | λ)); zeros unless asked for


@dataclass(frozen=True)
class Rows(Prediction):
    """A mixture of L products with equal weights, one a row of the features; L = 1 is a product."""

    features: Float[Tensor, "B L D H"]
    output_head: OutputHead

    def read(
        self,
        positions: Sites,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]] = (),
        *,
        components: bool = False,
        chunk_rows: int = 0,
    ) -> Reading:
        """One pass over M positions of the B sequences.

        Args:
            targets: T states a position, whose joint and marginal probabilities are wanted.
            distributions: q_r at each position, normalised, without gradient.
            components: whether `component_divergence`, from the first distribution, is wanted.
            chunk_rows: rows of logits held at once; 0: as many as suit the device.
        """
        read = read_mixture(
            self.features[positions.example, :, positions.position],
            positions.position,
            self.output_head,
            targets,
            distributions,
            component_divergence=components,
            chunk_rows=chunk_rows,
        )
        log_L = math.log(self.features.shape[1])
        return Reading(
            joint=positions.per_example(read.target_log_p).logsumexp(1) - log_L,
            product=positions.per_example(read.target_log_p.double().logsumexp(1) - log_L),
            divergence=positions.per_example(read.divergence),
            component_divergence=positions.per_example(read.component_divergence),
        )

    def marginals(self, positions: Sites, *, chunk_rows: int = 0) -> Float[Tensor, "M S"]:
        """m^d, λ averaged out, at M positions; without gradient."""
        features = self.features[positions.example, :, positions.position]
        return mean_law(features, positions.position, self.output_head, chunk_rows=chunk_rows)

    def independent(self, rng: torch.Generator) -> Prediction:
        """One row in which each position is said under a component of its own choice, so that positions are independent."""
        num_batch, num_rows, num_positions, _ = self.features.shape
        choice_BD = torch.randint(num_rows, (num_batch, num_positions), generator=rng).to(self.features.device)
        return self.under(choice_BD[:, None])
