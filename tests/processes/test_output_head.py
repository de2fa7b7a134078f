import pytest
import torch
from torch import Tensor

from di4c_lm.networks.logistic_head import LogisticHead
from di4c_lm.processes import denoiser as output_heads
from di4c_lm.processes.denoiser import LinearHead, OutputHead, Prediction

N, H, S = 7, 4, 9


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randn(s, generator=rng, dtype=torch.float64).to(dtype) for s in ((S, H), (S,), (N, H), (N, S)))  # pyright: ignore


@pytest.mark.parametrize("impossible", [None, S - 1])
@pytest.mark.parametrize("with_bias", [True, False])
def test_vjp_is_autograds(impossible: int | None, *, with_bias: bool) -> None:
    weight, bias, features, gradient = tensors()
    output_head = LinearHead(
        weight.requires_grad_(), bias.requires_grad_() if with_bias else None, impossible=impossible
    )
    positions = torch.arange(N)
    found, expected = ([torch.ones_like(p) for p in output_head.parameters] for _ in range(2))
    with torch.no_grad():
        ours = output_head.vjp(features, positions, gradient.clone(), found)
    theirs = OutputHead.vjp(output_head, features, positions, gradient, expected)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(found, expected)


def test_gradients_that_nobody_wants_are_not_made() -> None:
    weight, bias, features, gradient = tensors()
    output_head = LinearHead(weight, bias)
    with torch.no_grad():
        found = output_head.vjp(features, torch.arange(N), gradient.clone(), [None, None])
    torch.testing.assert_close(found, gradient @ weight)
    torch.testing.assert_close(OutputHead.vjp(output_head, features, torch.arange(N), gradient, [None, None]), found)


@pytest.mark.parametrize("kind", ["linear", "tied", "logistic"])
def test_pieces_are_the_head_of_some_states_each(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_heads, "_STATES_ON_CPU", 4)
    weight, bias, features, gradient = tensors()
    tied = torch.cat([weight, weight[:2]]), torch.randn(3, S + 2).double()
    head = {
        "linear": LinearHead(weight, bias, impossible=S - 2),
        "tied": LinearHead(*tied, impossible=S - 1, first_rows=S),
        "logistic": LogisticHead(S),
    }[kind]
    features, positions = features[:, :2] if kind == "logistic" else features, torch.arange(N) % 3
    found, expected = ([torch.ones_like(p) for p in head.parameters] for _ in range(2))
    with torch.no_grad():
        whole, logits, total_NH = head.logits(features, positions), [], torch.zeros_like(features)
        for piece in head.pieces(found):
            logits.append(piece.head.logits(features, positions))
            assert logits[-1].shape[1] == piece.states.stop - piece.states.start
            part = gradient[:, piece.states].clone()
            total_NH += piece.head.vjp(features, positions, part, piece.parameter_grads)
        torch.testing.assert_close(total_NH, head.vjp(features, positions, gradient.clone(), expected))
    torch.testing.assert_close(torch.cat(logits, 1), whole)
    torch.testing.assert_close(found, expected)
    assert len(logits) == (1 if kind == "logistic" else 3)


@pytest.mark.parametrize("states_at_once", [4, 2**13])
def test_narrow_products_block_by_block(states_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_heads, "_STATES_ON_CPU", states_at_once)
    weight, bias, features, gradient = tensors(torch.float32)
    narrow = LinearHead(weight, bias, matmul_dtype=torch.bfloat16)
    wide = LinearHead(weight, bias)
    totals = [[torch.zeros_like(weight), torch.zeros_like(bias)] for _ in range(2)]
    with torch.no_grad():
        logits = narrow.logits(features, torch.arange(N))
        found = narrow.vjp(features, torch.arange(N), gradient.clone(), totals[0])
        expected = wide.vjp(features, torch.arange(N), gradient.clone(), totals[1])
        exact = wide.logits(features, torch.arange(N))
    assert logits.dtype == found.dtype == torch.float32
    for ours, theirs in ((logits, exact), (found, expected), (totals[0][0], totals[1][0])):
        assert not torch.equal(ours, theirs)
        assert (ours - theirs).norm() < 0.01 * theirs.norm()
    torch.testing.assert_close(totals[0][1], totals[1][1])


@pytest.mark.parametrize("impossible", [None, S - 1])
@pytest.mark.parametrize("kind", ["linear", "tied", "logistic"])
def test_target_logits_are_those_of_the_whole_readout(kind: str, impossible: int | None) -> None:
    weight, bias, features, _ = tensors()
    positions = torch.arange(N) % 3
    output_head = {
        "linear": LinearHead(weight, bias, impossible=impossible),
        "tied": LinearHead(torch.cat([weight, weight[:2]]), torch.randn(3, S + 2).double(), impossible, first_rows=S),
        "logistic": LogisticHead(S),
    }[kind]
    features = features[:, :2] if kind == "logistic" else features
    targets = torch.stack([torch.arange(N) % S, torch.full((N,), S - 1)], 1)
    expected = output_head.logits(features, positions).gather(1, targets)
    torch.testing.assert_close(output_head.target_logits(features, positions, targets), expected)


def test_logits_are_the_callers_to_use_up() -> None:
    weight, _, features, _ = tensors()
    output_head = LinearHead(weight)
    with torch.no_grad():
        output_head.logits(features, torch.arange(N)).zero_()
        torch.testing.assert_close(output_head.logits(features, torch.arange(N)), features @ weight.T)


def test_an_impossible_state_has_probability_0_and_no_gradient() -> None:
    weight, bias, features, _ = tensors()
    output_head = LinearHead(weight, bias, impossible=3)
    leaf = features.requires_grad_()
    p = output_head.logits(leaf, torch.arange(N)).softmax(1)
    assert bool((p[:, 3] == 0).all())
    (gradient,) = torch.autograd.grad(p[:, 3].sum(), leaf)
    assert bool((gradient == 0).all())


def test_log_probs_of_a_prediction() -> None:
    weight, bias, _, _ = tensors()
    features = torch.randn(2, 3, 5, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_p = Prediction(features, LinearHead(weight, bias)).log_probs()
    torch.testing.assert_close(log_p, (features @ weight.T + bias).log_softmax(-1))
