"""The published step: its probabilities, and its samples' law where no token is rare."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.processes.schedules import LogLinear
from di4c_lm.samplers.analytic import Analytic, tweedie_weights
from di4c_lm.samplers.ancestral import Ancestral, posterior_weights
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.draw import Draw
from di4c_lm.samplers.grids import published_grid, uniform_grid
from di4c_lm.samplers.trajectory import sample

LEGACY = Draw(noise="legacy_fp32")


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1.0), st.floats(0.0, 0.99), st.integers(0, 1000))
def test_tweedie_is_the_posterior(t: float, share: float, seed: int) -> None:
    times = torch.tensor([t, share * t], dtype=torch.float64)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    log_p_NS = torch.cat([logits.log_softmax(1), torch.full((4, 1), -1e6)], 1)
    process = MaskedProcess(6)
    exact_NS = posterior_weights(log_p_NS, process, times[0], times[1]) / LogLinear().mask_prob(times[0])
    torch.testing.assert_close(exact_NS.sum(1), torch.ones(4, dtype=exact_NS.dtype), rtol=1e-5, atol=1e-6)
    # e^sigma, up to 1000, is taken from itself in float32.
    torch.testing.assert_close(tweedie_weights(log_p_NS, process, times[0], times[1]), exact_NS, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral(greedy_end=True), Analytic()])
def test_published_noise_draws_common_tokens_at_their_rates(joint, sampler) -> None:
    net = joint(torch.tensor([0.5, 0.3, 0.2]))
    states = []
    x = sample(
        net, MaskedProcess(3), torch.full((6000, 1), 3), published_grid(3), KeyedRng(0, torch.arange(6000)),
        sampler=sampler, draw=LEGACY, on_step=states.append,
    ).x  # fmt: skip
    assert chisquare(torch.bincount(x[:, 0]).numpy(), [3000, 1800, 1200]).pvalue > 1e-4
    assert abs(float((states[0] == 3).double().mean()) - 2 / 3) < 0.03, "and reveals at the rate of the grid"


def test_the_greedy_end_takes_the_likeliest(joint) -> None:
    x = sample(
        joint(torch.tensor([0.4, 0.6])), MaskedProcess(2), torch.full((50, 1), 2), uniform_grid(1),
        torch.Generator(), sampler=Ancestral(greedy_end=True), draw=LEGACY,
    ).x  # fmt: skip
    assert bool((x == 1).all())


def test_other_samplers_refuse_the_published_noise(joint) -> None:
    with pytest.raises(ValueError, match="noise='legacy_fp32' is for sampler=ancestral and sampler=analytic"):
        sample(
            joint(torch.tensor([0.4, 0.6])), MaskedProcess(2), torch.full((2, 1), 2), uniform_grid(1),
            torch.Generator(), sampler=Confidence(), draw=LEGACY,
        )  # fmt: skip


def test_the_analytic_sampler_tells_the_network_no_time(joint) -> None:
    net = joint(torch.tensor([0.4, 0.6]))
    sample(
        net,
        MaskedProcess(2),
        torch.full((5, 1), 2),
        uniform_grid(3),
        torch.Generator(),
        sampler=Analytic(),
        draw=LEGACY,
    )
    assert all(not bool(t.any()) for t in net.times)
