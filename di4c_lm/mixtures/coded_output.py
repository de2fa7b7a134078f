"""What a code of λ adds to the output of a network on images, each pixel by itself."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_STD = 0.1  # of what is added before training, where init_scale=1
_MOST = 4.0  # that is added, so that no scale vanishes


class CodedOutput(nn.Module):
    """To μ and log s of each pixel: what two layers make of its normed features and its place, both shifted and scaled by the code."""

    def __init__(self, channels: int, *, places: int, colours: int, scale: float) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(places, 2 * channels))
        nn.init.normal_(self.place)
        self.inner = nn.Linear(channels, 2 * channels)
        self.outer = nn.Linear(2 * channels, channels)
        self.output_head = nn.Linear(channels, 2 * colours)
        nn.init.normal_(self.output_head.weight, std=_STD * scale / math.sqrt(channels))
        nn.init.zeros_(self.output_head.bias)

    def forward(
        self, h: Float[Tensor, "B 1 P C"], modulation: Float[Tensor, "_B L Q fourC"]
    ) -> Float[Tensor, "B L P K"]:
        """K = 2 numbers a colour for each of L codes, at each of P pixels."""
        normed = F.layer_norm(h, h.shape[-1:])
        shift_1, scale_1, shift_2, scale_2 = modulation.chunk(4, dim=3)
        inner = F.silu(self.inner(normed * (1 + scale_1) + shift_1) + self.place)
        added = self.output_head(F.silu(self.outer(inner) * (1 + scale_2) + shift_2))
        return _MOST * torch.tanh(added / _MOST)
