"""SDTT's four divergences: against everything materialised in float64, and their properties."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.losses.reading import read_mixture
from di4c_lm.losses.sdtt import DivergenceName, sdtt_divergence
from di4c_lm.processes.denoiser import LinearHead

NAMES = get_args(DivergenceName)
MASK = 6  # the last of 7 states


def problem(seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Features (M, H), weight (S, H), bias (S), positions (M) and the teacher's log-probabilities (M, S), MASK impossible."""
    rng = torch.Generator().manual_seed(seed)
    features, weight, bias = (torch.randn(*shape, generator=rng).double() for shape in ((9, 5), (7, 5), (7,)))
    teacher = torch.randn(9, 7, generator=rng).double() * scale
    teacher[:, MASK] = -1e6
    return features * scale, weight, bias, torch.arange(9) % 4, teacher.log_softmax(1)


def plain(name: str, features: Tensor, weight: Tensor, bias: Tensor, log_q: Tensor) -> Tensor:
    """The definitions (appendix B of the paper) on the states other than MASK."""
    log_p = (features @ weight.T + bias)[:, :MASK].log_softmax(1)
    log_q = log_q[:, :MASK].to(log_p.dtype)
    if name == "kl_forward":
        return torch.nn.functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)
    if name == "kl_backward":
        return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    if name == "tv":
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(1)
    return (log_p - log_q).square().mean(1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk_rows", [0, 1, 4])
@pytest.mark.parametrize(("dtype", "slack"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 4e-3)])
def test_value_and_gradients_are_those_of_the_definition(
    name: DivergenceName, chunk_rows: int, dtype: torch.dtype, slack: float
) -> None:
    features, weight, bias, positions, log_q = problem(1)
    weights = torch.linspace(-1, 2, len(features)).double()

    def grads(cast: torch.dtype, *, lean: bool) -> tuple[Tensor, list[Tensor]]:
        rounded = [x.to(dtype).to(cast).requires_grad_() for x in (features, weight, bias)]
        output_head = LinearHead(rounded[1], rounded[2], impossible=MASK)
        target = log_q.to(torch.float64 if cast == torch.float64 else torch.float32)
        found = sdtt_divergence(name, rounded[0], positions, output_head, target, chunk_rows=chunk_rows)
        value = found if lean else plain(name, rounded[0], rounded[1], rounded[2], target)
        return value.detach(), list(torch.autograd.grad((value.double() * weights).sum(), rounded))

    exact, exact_grads = grads(torch.float64, lean=False)
    found, found_grads = grads(dtype, lean=True)
    naive, naive_grads = grads(dtype, lean=False)
    for a, b, c in zip([exact, *exact_grads], [found, *found_grads], [naive, *naive_grads], strict=True):
        # An error budget: what the plain computation in the same dtype loses, and `slack` of the largest entry.
        budget = (c.double() - a.double()).abs().max() + slack * a.abs().max()
        assert (b.double() - a).abs().max() <= budget


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 20))
@settings(max_examples=25, deadline=None)
def test_a_divergence_is_not_negative_and_is_zero_with_no_pull_at_the_teacher(
    name: DivergenceName, seed: int, scale: float
) -> None:
    features, weight, bias, positions, log_q = problem(seed, scale)
    output_head = LinearHead(weight, bias, impossible=MASK)
    assert (sdtt_divergence(name, features, positions, output_head, log_q) >= -1e-12).all()

    features.requires_grad_()
    own = output_head.logits(features.detach(), positions).log_softmax(1)
    at_teacher = sdtt_divergence(name, features, positions, output_head, own)
    assert at_teacher.abs().max() < 1e-10
    (pull,) = torch.autograd.grad(at_teacher.sum(), features)
    assert pull.abs().max() < 1e-9


@pytest.mark.parametrize("name", ["kl_forward", "kl_backward"])
def test_float32_keeps_a_small_divergence(name: DivergenceName) -> None:
    features, weight, bias, positions, _ = problem(7)
    narrow = LinearHead(weight.float(), bias.float(), impossible=MASK)
    near = (features.float() + 1e-4 * torch.linspace(-1, 1, 45).view(9, 5)).detach()
    log_q = narrow.logits(near, positions).log_softmax(1)
    found = sdtt_divergence(name, features.float(), positions, narrow, log_q)
    wide = LinearHead(weight.float().double(), bias.float().double(), impossible=MASK)
    exact_q = wide.logits(near.double(), positions).log_softmax(1)
    exact = sdtt_divergence(name, features.float().double(), positions, wide, exact_q)
    assert (exact < 1e-7).all()
    torch.testing.assert_close(found.double(), exact, rtol=0.05, atol=1e-12)


@pytest.mark.parametrize("name", ["kl_forward", "kl_backward"])
def test_what_a_student_makes_of_many_targets(name: DivergenceName) -> None:
    """Forward KL is least at their mean, backward KL at their normalised geometric mean, which is the sharper."""
    *_, log_q = problem(6)
    best = log_q.exp().mean(0).log() if name == "kl_forward" else log_q.mean(0)
    best = best.log_softmax(0)
    bias = best.nan_to_num(neginf=-1e6).requires_grad_()
    output_head = LinearHead(torch.zeros(7, 5).double(), bias, impossible=MASK)
    value = sdtt_divergence(name, torch.zeros(9, 5).double(), torch.zeros(9, dtype=torch.int64), output_head, log_q)
    (pull,) = torch.autograd.grad(value.mean(), bias)
    assert pull.abs().max() < 1e-12


def test_forward_kl_is_the_mixtures_at_one_component() -> None:
    features, weight, bias, positions, log_q = problem(3)
    output_head = LinearHead(weight, bias, impossible=MASK)
    targets = torch.zeros(len(positions), 0, dtype=torch.int64)
    reading = read_mixture(features[:, None], positions, output_head, targets, (log_q.exp(),))
    found = sdtt_divergence("kl_forward", features, positions, output_head, log_q)
    torch.testing.assert_close(found, reading.divergence[:, 0])


def test_no_position_at_all_gives_no_value_and_zero_gradients() -> None:
    features, weight, bias, positions, log_q = problem(4)
    weight.requires_grad_()
    output_head = LinearHead(weight, bias, impossible=MASK)
    value = sdtt_divergence("kl_backward", features[:0].requires_grad_(), positions[:0], output_head, log_q[:0])
    assert value.shape == (0,)
    value.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_certain_teachers_give_finite_gradients() -> None:
    features, weight, bias, positions, _ = problem(5)
    log_q = torch.full((9, 7), -400.0).double()
    log_q[:, 2], log_q[:, MASK] = 0.0, -1e6
    for name in NAMES:
        leaf = features.float().requires_grad_()
        output_head = LinearHead(weight.float(), bias.float(), impossible=MASK)
        value = sdtt_divergence(name, leaf, positions, output_head, log_q.float())
        assert value.isfinite().all()
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        assert grad.isfinite().all()
