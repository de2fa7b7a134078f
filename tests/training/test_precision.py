"""Casts that spare buffers."""

import torch
from torch import Tensor, nn

from di4c_lm.training.engine import exact_buffers


class Phases(nn.Module):
    """Phases of positions by a buffer of frequencies, as rotary positions have them."""

    frequency: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequency", 10_000.0 ** (-torch.arange(32) / 32))

    def forward(self, position: int) -> Tensor:
        """(32,) radians."""
        return position * self.frequency.float()


def test_late_positions_keep_their_phase_in_a_narrow_network() -> None:
    wide, narrow, rounded = (nn.Sequential(Phases(), nn.Linear(2, 2)) for _ in range(3))
    with exact_buffers(narrow):
        narrow.bfloat16()
    rounded.bfloat16()
    assert next(narrow[1].parameters()).dtype == torch.bfloat16
    assert torch.equal(narrow[0](1024), wide[0](1024))
    assert (rounded[0](1024) - wide[0](1024)).abs().max() > 0.3
