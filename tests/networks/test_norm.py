import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from di4c_lm.networks.norm import modulated_norm


def inputs(rows: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(rows)
    shapes = ((3, 4, 6), (rows, 1, 6), (rows, 1, 6))
    return [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes]


@pytest.mark.parametrize("rows", [1, 3])
def test_it_is_layer_norm_then_modulation(rows: int) -> None:
    x, shift, scale = inputs(rows)
    expected = F.layer_norm(x, (6,)) * scale + shift
    torch.testing.assert_close(modulated_norm(x, shift, scale), expected)
    assert torch.autograd.gradcheck(modulated_norm, (x, shift, scale))


def test_narrow_input_is_computed_wide() -> None:
    x, shift, scale = (v.detach().float() for v in inputs(1))
    narrow = (100 + x).to(torch.bfloat16)
    found = modulated_norm(narrow, shift, scale)
    expected = F.layer_norm(narrow.float(), (6,)) * scale + shift
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.to(torch.bfloat16))
