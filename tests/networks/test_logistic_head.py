"""The discretised logistic against its definition, its gradient against differences."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.losses.reading import read_mixture
from di4c_lm.networks.logistic_head import LogisticHead
from di4c_lm.processes.denoiser import OutputHead, Prediction

STATES = 11
FEATURES = st.lists(st.tuples(st.floats(-1, 1), st.floats(-2, 6)), min_size=1, max_size=5)


def definition(features_NH: Tensor, num_states: int) -> Tensor:
    """(σ(r) - σ(l)) + lift σ(r), normalised, in float64."""
    mean_N1, log_scale_N1 = features_NH.double().unbind(1)[0][:, None], features_NH.double().unbind(1)[1][:, None]
    edge_E = torch.linspace(-1, 1, num_states + 1, dtype=torch.float64)
    below_NE = torch.sigmoid((edge_E - mean_N1) * (2 - log_scale_N1).exp())
    mass_NS = below_NE.diff(dim=1) + 1e-6 * below_NE[:, 1:]
    return mass_NS / mass_NS.sum(1, keepdim=True)


def at(features_NH: Tensor) -> Tensor:
    return torch.zeros(len(features_NH), dtype=torch.int64)


@settings(deadline=None)
@given(FEATURES)
def test_it_is_the_mass_of_a_logistic_in_equal_bins(features: list[tuple[float, float]]) -> None:
    features_NH = torch.tensor(features, dtype=torch.float64)
    law_NS = LogisticHead(STATES).logits(features_NH, at(features_NH)).softmax(1)
    torch.testing.assert_close(law_NS, definition(features_NH, STATES), atol=1e-12, rtol=1e-9)


@settings(deadline=None)
@given(FEATURES)
def test_seen_from_the_other_side_it_is_its_mirror_image(features: list[tuple[float, float]]) -> None:
    """With both tails the law of -μ is that of μ read backwards."""
    output_head, features_NH = LogisticHead(STATES, both_tails=True), torch.tensor(features, dtype=torch.float64)
    mirrored_NH = features_NH * torch.tensor([-1.0, 1.0])
    logits_NS, back_NS = (output_head.logits(f, at(f)) for f in (features_NH, mirrored_NH))
    torch.testing.assert_close(back_NS.flip(1), logits_NS, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("both_tails", [False, True])
def test_the_gradient_is_that_of_autograd(both_tails: bool) -> None:  # noqa: FBT001
    output_head = LogisticHead(STATES, both_tails=both_tails)
    features_NH = torch.tensor([[0.3, -1.0], [-0.9, 2.0], [0.05, 6.0], [1.0, 0.5]]).double().requires_grad_()
    grad_NS = torch.randn(4, STATES, generator=torch.Generator().manual_seed(0)).double()
    (expected,) = torch.autograd.grad(output_head.logits(features_NH, at(features_NH)), features_NH, grad_NS)
    ours = output_head.vjp(features_NH.detach(), at(features_NH), grad_NS.clone(), ())
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("log_scale", [-20.0, 0.0, 20.0])
def test_extreme_scales_stay_finite_in_float32(log_scale: float) -> None:
    output_head = LogisticHead(256)
    features_NH = torch.tensor([[-1.0, log_scale], [1.0, log_scale], [0.1, log_scale]])
    logits_NS = output_head.logits(features_NH, at(features_NH))
    assert bool(logits_NS.isfinite().all())
    assert bool(output_head.vjp(features_NH, at(features_NH), torch.ones_like(logits_NS), ()).isfinite().all())


def test_a_mixture_is_read_out_through_it() -> None:
    """The loss core's one pass over positions, against everything materialised."""
    output_head = LogisticHead(STATES)
    assert isinstance(output_head, OutputHead)
    features_MLH = torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    positions_M, targets_MT = torch.arange(7), torch.arange(7)[:, None] % STATES
    reading = read_mixture(features_MLH, positions_M, output_head, targets_MT, chunk_rows=6)
    log_p = Prediction(features_MLH.transpose(0, 1)[None], output_head).log_probs()[0].transpose(0, 1)
    expected = log_p.gather(2, targets_MT[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(reading.target_log_p, expected)
    grads = [
        torch.autograd.grad(value.logsumexp(1).sum(), features_MLH, retain_graph=True)[0]
        for value in (reading.target_log_p, expected)
    ]
    torch.testing.assert_close(*grads)
