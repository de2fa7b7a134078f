"""The positions of a batch that enter a loss, flat."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Positions:
    """M positions of B examples, in any order: position `position[m]` of example `example[m]`."""

    example: Int64[Tensor, " M"]
    position: Int64[Tensor, " M"]
    num_examples: int  # B

    @classmethod
    def where(cls, chosen: Bool[Tensor, "B D"]) -> "Positions":
        """The positions at which `chosen` is true."""
        example_M, position_M = chosen.nonzero(as_tuple=True)
        return cls(example=example_M, position=position_M, num_examples=len(chosen))

    def gather(self, x: Int64[Tensor, "B D"]) -> Int64[Tensor, " M"]:
        """The values of `x` there."""
        return x[self.example, self.position]

    def features(self, features: Float[Tensor, "B L D H"]) -> Float[Tensor, "M L H"]:
        """The features there, of every λ."""
        return features[self.example, :, self.position]

    def per_example(self, value: Float[Tensor, "M *rest"]) -> Float64[Tensor, "B *rest"]:
        """Sums over the positions of each example, in float64."""
        total = torch.zeros(self.num_examples, *value.shape[1:], dtype=torch.float64, device=value.device)
        return total.index_add(0, self.example, value.double())
