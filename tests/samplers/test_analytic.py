"""The analytic step: the ancestral one, written with scores; the network gets no time where it is as published."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.processes.masked import LogLinear, MaskedProcess
from di4c_lm.samplers.ancestral import posterior_weights, tweedie_weights
from tests.samplers.helpers import CORRELATED, Exact, Joint, run, run_chain


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1.0), st.floats(0.0, 0.99), st.integers(0, 1000))
def test_tweedie_is_the_posterior(t: float, share: float, seed: int) -> None:
    times = torch.tensor([t, share * t], dtype=torch.float64)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    log_p_NS = torch.cat([logits.log_softmax(1), torch.full((4, 1), -1e6)], 1)
    process = MaskedProcess(6)
    exact_NS = posterior_weights(log_p_NS, process, times[0], times[1]) / LogLinear().mask_prob(times[0])
    torch.testing.assert_close(exact_NS.sum(1), torch.ones(4, dtype=exact_NS.dtype), rtol=1e-5, atol=1e-6)
    # e^σ, up to 1000, is taken from itself in float32.
    torch.testing.assert_close(tweedie_weights(log_p_NS, process, times[0], times[1]), exact_NS, rtol=1e-3, atol=1e-3)


def test_exact_steps_are_those_of_ancestral_sampling() -> None:
    assert torch.equal(run(Joint(CORRELATED), 50, 4, "analytic").x, run(Joint(CORRELATED), 50, 4).x)
    assert torch.equal(run_chain(Exact(), 50, 4, "analytic").x, run_chain(Exact(), 50, 4).x)


@pytest.mark.parametrize("noise, timed", [("legacy_fp32", False), ("exact", True)])
def test_the_published_step_gives_the_network_no_time(noise: str, timed: bool) -> None:  # noqa: FBT001
    net = Joint(torch.tensor([0.4, 0.6]))
    run(net, 5, 3, "analytic", noise=noise)
    assert net.times and all(bool(t.any()) == timed for t in net.times)
