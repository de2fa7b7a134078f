"""What a network says of x_0 in L rows of equal weight, and how a loss reads it: joint, marginals and divergences, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import Reading, mixture_marginals, read_rows
from di4c_lm.processes.denoiser import OutputHead, Prediction


@dataclass(frozen=True)
class Rows(Prediction):
    """A mixture of L products with equal weights, one a row of the features; L = 1 is a product."""

    features: Float[Tensor, "B L D H"]
    output_head: OutputHead

    def read(
        self,
        positions: Positions,
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
            components: whether the components' divergence, from the first distribution, is wanted.
            chunk_rows: rows of logits held at once; 0: as many as suit the device.
        """
        return read_rows(
            positions.features(self.features),
            positions,
            self.output_head,
            targets,
            distributions,
            components=components,
            chunk_rows=chunk_rows,
        )

    def marginals(self, positions: Positions, *, chunk_rows: int = 0) -> Float[Tensor, "M S"]:
        """The marginals, λ averaged out, at M positions; without gradient."""
        features_MLH = positions.features(self.features)
        return mixture_marginals(features_MLH, positions.position, self.output_head, chunk_rows=chunk_rows)

    def independent(self, rng: torch.Generator) -> Prediction:
        """One row in which each position is said under a component of its own choice, so that positions are independent."""
        num_batch, num_rows, num_positions, _ = self.features.shape
        choice_BD = torch.randint(num_rows, (num_batch, num_positions), generator=rng).to(self.features.device)
        return self.under(choice_BD[:, None])
