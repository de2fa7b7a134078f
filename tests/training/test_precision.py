"""Casts that spare buffers."""

import torch

from di4c_lm.networks.attention import Rotary
from di4c_lm.training.precision import exact_buffers


def test_late_positions_keep_their_phase_in_a_narrow_network():
    wide, narrow, rounded = (torch.nn.Sequential(Rotary(64), torch.nn.Linear(2, 2)) for _ in range(3))
    with exact_buffers(narrow):
        narrow.bfloat16()
    rounded.bfloat16()
    assert narrow[1].weight.dtype == torch.bfloat16
    assert torch.equal(narrow[0](1024, 0)[0], wide[0](1024, 0)[0])
    assert (rounded[0](1024, 0)[0] - wide[0](1024, 0)[0]).abs().max() > 0.3
