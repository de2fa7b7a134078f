"""Distributions of the chain with Gaussian-target rates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import KeyedRng, uniform
from tests.processes.helpers import fixed

TIMES = st.floats(0.01, 1.0)
STATES = st.integers(2, 24)


def chain(num_states: int, **settings: float) -> GaussianChain:
    return GaussianChain(num_states=num_states, **{"rate_sigma": 2.0, "q_sigma": 5.0, **settings})


def at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_distribution(num_rows: int, num_states: int, seed: int) -> Tensor:
    rng = KeyedRng(seed, torch.arange(num_rows))
    return (3 * rng.uniform((num_rows, num_states))).softmax(1)


def near(counts: Tensor, p: Tensor) -> bool:
    """Chi-squared of rows of counts, within six standard deviations over all cells."""
    expected = p * counts.sum(-1, keepdim=True)
    kept = expected > 5
    statistic = float(((counts - expected) ** 2 / expected)[kept].sum())
    freedom = int(kept.sum())
    return abs(statistic - freedom) < 6 * math.sqrt(2 * freedom) + 6


@settings(deadline=None, max_examples=40)
@given(STATES, st.lists(TIMES, min_size=3, max_size=3))
def test_transitions_are_distributions_and_compose(num_states: int, times: list[float]) -> None:
    """P(s, t) P(t, u) = P(s, u), its rows sum to 1, and P(t, t) is the identity."""
    process, (s, t, u) = chain(num_states), at(*sorted(times))
    q_SS = process.transition(u, s)
    torch.testing.assert_close(q_SS.sum(1), torch.ones_like(q_SS[:, 0]))
    assert float(q_SS.min()) > 0
    torch.testing.assert_close(process.transition(t, s) @ process.transition(u, t), q_SS, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(process.transition(t, t), torch.eye(num_states).double(), atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=40)
@given(STATES, TIMES)
def test_the_stationary_distribution_stays_and_balances_in_detail(num_states: int, t: float) -> None:
    process = chain(num_states)
    pi_S, rate_SS, q_SS = process.stationary(), process.rate_matrix(), process.transition(at(t)[0])
    torch.testing.assert_close(pi_S @ q_SS, pi_S)
    for matrix in (rate_SS, q_SS):
        flow_SS = pi_S[:, None] * matrix
        torch.testing.assert_close(flow_SS, flow_SS.T, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(rate_SS.sum(1), torch.zeros(num_states).double(), atol=1e-12, rtol=0)
    assert float((rate_SS - rate_SS.diag().diag()).min()) >= 0


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 12), TIMES)
def test_transitions_solve_the_forward_equation(num_states: int, t: float) -> None:
    """dP/dt = P β'(t) R, by central differences."""
    process, h = chain(num_states), 1e-5
    slope_SS = (process.transition(at(t + h)[0]) - process.transition(at(t - h)[0])) / (2 * h)
    expected_SS = process.transition(at(t)[0]) @ process.rate_matrix() * process.rate(at(t)[0])
    torch.testing.assert_close(slope_SS, expected_SS, atol=1e-4 * float(process.rate(at(t)[0])), rtol=0)


@settings(deadline=None, max_examples=40)
@given(STATES, st.lists(TIMES, min_size=2, max_size=2, unique=True), st.integers(0, 99))
def test_the_posterior_is_a_distribution_and_that_of_the_data_is_bayes(
    num_states: int, times: list[float], seed: int
) -> None:
    """With p_0 the true p(x_0 | x_t) of any data, the posterior is the true p(x_s | x_t)."""
    process, (s, t) = chain(num_states), at(*sorted(times))
    data_S = random_distribution(1, num_states, seed)[0]
    joint_0t = data_S[:, None] * process.transition(t)
    p_0_NS = (joint_0t / joint_0t.sum(0)).T
    q_NS = process.posterior(torch.arange(num_states), p_0_NS, t, s)
    torch.testing.assert_close(q_NS.sum(1), torch.ones_like(q_NS[:, 0]))
    joint_st = (data_S @ process.transition(s))[:, None] * process.transition(t, s)
    torch.testing.assert_close(q_NS, (joint_st / joint_st.sum(0)).T, atol=1e-9, rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 12), st.floats(0.05, 1.0), st.integers(0, 99))
def test_reverse_rates_are_the_slope_of_the_posterior(num_states: int, t: float, seed: int) -> None:
    """p(x_{t-h} = y | x_t = x) = h rate(x -> y) + O(h²) for y other than x."""
    process, when = chain(num_states), at(t)[0]
    x_N, p_0_NS = torch.arange(num_states), random_distribution(num_states, num_states, seed)
    rates_NS = process.reverse_rates(x_N, p_0_NS, when)
    h = 1e-6 / float(rates_NS.sum(1).max() + 1)
    q_NS = process.posterior(x_N, p_0_NS, when, when - h)
    off_NS = q_NS - q_NS.diag().diag()
    torch.testing.assert_close(off_NS / h, rates_NS, atol=1e-4 * float(rates_NS.max()), rtol=1e-3)


def test_samples_follow_the_distributions() -> None:
    """`prior`, `corrupt` and `bridge` against their matrices, each example with its own time."""
    process, count = chain(6), 20_000
    start = process.prior(1, count, KeyedRng(0, torch.arange(1)), torch.device("cpu"))
    assert near(torch.bincount(start[0], minlength=6).double(), process.stationary())
    times = at(0.05, 0.2, 0.7)
    x_0 = torch.arange(6).repeat(3, count // 6)
    x_t = process.corrupt(x_0, times, KeyedRng(1, torch.arange(3)))
    counts = torch.zeros(3, 6, 6).index_put_(
        (torch.arange(3)[:, None].expand_as(x_0), x_0, x_t), torch.ones(()), accumulate=True
    )
    assert near(counts.double(), process.transition(times))
    lower = times / 3
    t_BD, s_BD = times[:, None].expand_as(x_0).double(), lower[:, None].expand_as(x_0).double()
    u_BD = KeyedRng(2, torch.arange(3)).uniform(tuple(x_0.shape))
    x_s = process.bridge(torch.full_like(x_0, 4), x_0, t_BD, s_BD, u_BD)
    assert bool(process.unknown(x_t).all())
    counts = torch.zeros(3, 6, 6).index_put_(
        (torch.arange(3)[:, None].expand_as(x_0), x_0, x_s), torch.ones(()), accumulate=True
    )
    exact = [
        process.posterior(torch.full((6,), 4), torch.eye(6).double(), t, s) for t, s in zip(times, lower, strict=True)
    ]
    assert near(counts.double(), torch.stack(exact))


def test_reverse_follows_the_posterior() -> None:
    process, count = chain(6), 20_000
    t_B, s_B, p_SS = at(0.1, 0.8), at(0.02, 0.5), random_distribution(6, 6, 3)
    x_t = torch.arange(6).repeat(2, count)
    x_s = process.reverse(x_t, fixed(p_SS), t_B, s_B, KeyedRng(5, torch.arange(2)))
    for t, s, from_t, to_s in zip(t_B, s_B, x_t, x_s, strict=True):
        counts = torch.bincount(from_t * 6 + to_s, minlength=36).view(6, 6).double()
        assert near(counts, process.posterior(torch.arange(6), p_SS, t, s))


def test_at_time_0_the_bridge_is_x_0_be_it_ever_so_unlikely() -> None:
    process, t = GaussianChain(), at(0.012, 0.012)
    x_t, x_0 = torch.tensor([255, 0]), torch.tensor([0, 255])
    assert torch.equal(process.bridge(x_t, x_0, t, torch.zeros_like(t), at(0.9, 0.1)), x_0)


def test_reverse_samples_x_0_before_the_bridge() -> None:
    """The order of uniforms is a contract: those of the prediction first, as x_0 is needed everywhere."""
    process, x_t, x_0 = chain(6), torch.arange(6).repeat(3, 1), torch.full((3, 6), 2)
    t_B, s_B, rng = at(0.3, 0.5, 1.0), at(0.1, 0.4, 0.2), KeyedRng(0, torch.arange(3))
    x_s = process.reverse(x_t, lambda x, t, needed, rng: x_0 + uniform(rng, (3, 6)).long(), t_B, s_B, rng)
    again = KeyedRng(0, torch.arange(3))
    again.uniform((3, 6))
    t_BD, s_BD = t_B[:, None].expand_as(x_t), s_B[:, None].expand_as(x_t)
    assert torch.equal(x_s, process.bridge(x_t, x_0, t_BD, s_BD, again.uniform((3, 6))))


def test_a_guess_that_cannot_be_true_still_gives_a_distribution() -> None:
    """At time 0.01 no pixel goes from 0 to 255; a network may say so all the same."""
    process = GaussianChain()
    t, s = at(0.012, 0.011)
    x_t, sure_NS = torch.tensor([255, 0]), torch.eye(256).double()[[0, 255]]
    q_NS = process.posterior(x_t, sure_NS, t, s)
    torch.testing.assert_close(q_NS.sum(1), torch.ones(2).double())
    found = process.bridge(x_t, torch.tensor([0, 255]), t.expand(2), s.expand(2), at(0.3, 0.6))
    assert 0 <= int(found.min()) <= int(found.max()) <= 255
    assert bool(process.reverse_rates(x_t, sure_NS, t).isfinite().all())


def test_it_is_a_process_and_no_batch_changes_a_sample() -> None:
    process = GaussianChain(num_states=16)
    assert isinstance(process, Process)
    x_0, times = torch.arange(16).repeat(5, 3), at(0.02, 0.1, 0.3, 0.9, 1.0)
    whole = process.corrupt(x_0, times, KeyedRng(3, torch.arange(5)))
    part = process.corrupt(x_0[3:], times[3:], KeyedRng(3, torch.arange(3, 5)))
    assert torch.equal(whole[3:], part)


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("num_states", 1, "at least 2"),
        ("rate_sigma", 0.0, "above 0"),
        ("q_sigma", math.inf, "a number"),
        ("time_base", -1.0, "above 0"),
        ("time_exponential", 1.0, "above 1"),
        ("min_time", 1.0, r"in \[0, 1\)"),
    ],
)
def test_impossible_settings(name: str, value: float, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be {allowed}, got"):
        GaussianChain(**{name: value})  # pyright: ignore[reportArgumentType]
