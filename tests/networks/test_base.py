import math

import pytest
import torch

from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.networks.base import Rotary, attend, block_matrices, rotate, use_flash
from di4c_lm.networks.dit import DIT, DitConfig
from tests.networks.helpers import maskgit


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_attention_is_softmax_of_scaled_products() -> None:
    q, k, v = random(2, 5, 3, 4), random(2, 5, 3, 4) * 2, random(2, 5, 3, 4) + 1
    weights = (torch.einsum("nphd,nqhd->nhpq", q, k) / math.sqrt(4)).softmax(-1)
    torch.testing.assert_close(attend(q, k, v), torch.einsum("nhpq,nqhd->nphd", weights, v))


def test_attention_among_products_in_bfloat16_is_in_float32_on_a_cpu() -> None:
    q, k, v = (torch.randn(2, 5, 2, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v)
    assert torch.equal(out, attend(q, k, v))


def test_products_of_rotated_vectors_depend_on_distance_alone() -> None:
    cos, sin = Rotary(8)(10, 0)
    q, k = (random(1, 1, 1, 8).expand(1, 10, 1, 8) + shift for shift in (0, 1))
    products = torch.einsum(
        "nphd,nqhd->pq", rotate(q, cos.double(), sin.double()), rotate(k, cos.double(), sin.double())
    )
    for offset in (-3, 0, 4):
        diagonal = products.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert (products[0, 0] - products[0, 3]).abs() > 1e-3


def test_extra_positions_are_not_turned() -> None:
    cos, sin = Rotary(8)(4, 2)
    x = random(1, 6, 1, 8)
    turned = rotate(x, cos, sin)
    torch.testing.assert_close(turned[:, [0, 4, 5]], x[:, [0, 4, 5]])
    assert (turned[:, 3] - x[:, 3]).abs().max() > 1e-2


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is at hand")
def test_flash_without_a_gpu_is_refused_and_not_chosen() -> None:
    with pytest.raises(ValueError, match="model.attention must be auto or sdpa without .*, got 'flash'"):
        use_flash("flash")
    assert not use_flash("auto") and not use_flash("sdpa")


def test_the_matrices_of_blocks_are_those_of_attention_and_mlps() -> None:
    dit = DIT(DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8), num_states=6)
    of_block = {"attn_qkv.weight", "attn_out.weight", "mlp.0.weight", "mlp.2.weight"}
    assert block_matrices(dit) == {f"blocks.{i}.{name}" for i in range(2) for name in of_block}
    assert "blocks.1.mlp.0.weight" in block_matrices(dit) and "output_layer.linear.weight" not in block_matrices(dit)
    head = SequentialSettings(layers=1).over(
        dit, torch.Generator().manual_seed(0)
    )  # the backbone is frozen, and held outside
    found = block_matrices(head)
    assert len(found) == 4 and all(name.endswith(tuple(of_block)) and not name.startswith("network") for name in found)
    codes = block_matrices(maskgit())
    assert any(name.endswith("in_proj_weight") for name in codes) and not any("emb" in name for name in codes)
