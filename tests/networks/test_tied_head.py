import pytest
import torch
from torch import Tensor

from di4c_lm.processes.denoiser import LinearHead, OutputHead

N, H, S, T, P = 9, 4, 6, 8, 5  # T tokens of which S are states, P places


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((T, H), (P, T), (N, H), (N, S))
    return tuple(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype) for s in shapes)  # pyright: ignore


def positions() -> Tensor:
    return torch.randint(P, (N,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("impossible", [None, S - 1])
def test_vjp_is_autograds(impossible: int | None) -> None:
    embedding, bias, features, gradient = tensors()
    output_head = LinearHead(embedding.requires_grad_(), bias.requires_grad_(), impossible, first_rows=S)
    found, expected = ([torch.ones_like(p) for p in output_head.parameters] for _ in range(2))
    with torch.no_grad():
        ours = output_head.vjp(features, positions(), gradient.clone(), found)
    theirs = OutputHead.vjp(output_head, features, positions(), gradient, expected)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, expected)
    assert bool((found[0][S:] == 1).all())  # rows that are no state have no gradient


def test_gradients_that_nobody_wants_are_not_made() -> None:
    embedding, bias, features, gradient = tensors()
    found = LinearHead(embedding, bias, first_rows=S).vjp(features, positions(), gradient.clone(), [None, None])
    torch.testing.assert_close(found, gradient @ embedding[:S])


def test_the_bias_is_of_the_position() -> None:
    embedding, bias, features, _ = tensors()
    logits = LinearHead(embedding, bias, first_rows=S).logits(features, positions())
    for row, place in enumerate(positions().tolist()):
        torch.testing.assert_close(logits[row], embedding[:S] @ features[row] + bias[place, :S])


def test_narrow_products_are_near() -> None:
    embedding, bias, features, gradient = tensors(torch.float32)
    narrow, wide = (
        LinearHead(embedding, bias, matmul_dtype=torch.bfloat16, first_rows=S),
        LinearHead(embedding, bias, first_rows=S),
    )
    totals = [[torch.zeros_like(embedding), torch.zeros_like(bias)] for _ in range(2)]
    ours, theirs = (
        [
            output_head.logits(features, positions()),
            output_head.vjp(features, positions(), gradient.clone(), total),
            total[0],
        ]
        for output_head, total in zip((narrow, wide), totals, strict=True)
    )
    for near, exact in zip(ours, theirs, strict=True):
        assert near.dtype == torch.float32 and not torch.equal(near, exact)
        assert (near - exact).norm() < 0.01 * exact.norm()
