"""Uniform-state diffusion against the matrices of tiny chains, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import KeyedRng, Rng, uniform
from di4c_lm.processes.uniform import UniformProcess
from tests.processes.helpers import fixed

TIMES = st.floats(1e-3, 1.0)
STATES = st.integers(2, 9)


def at(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def step(size: int, kept: float) -> Tensor:
    """The transition whose positions are kept with this probability, else sampled anew: row from, column to."""
    return kept * torch.eye(size).double() + (1 - kept) / size


def chain(size: int, s: float, t: float) -> tuple[Tensor, Tensor]:
    """q(x_s | x_0) and q(x_t | x_s) by their definition, α(t) = 1 - (1 - 0.001) t."""
    alpha = [1 - 0.999 * time for time in (s, t)]
    return step(size, alpha[0]), step(size, alpha[1] / alpha[0])


def random_distribution(num_rows: int, size: int, seed: int) -> Tensor:
    return (3 * KeyedRng(seed, torch.arange(num_rows)).uniform((num_rows, size))).softmax(1)


def near(counts: Tensor, p: Tensor) -> bool:
    """Chi-squared of rows of counts, within six standard deviations over all cells."""
    expected = p * counts.sum(-1, keepdim=True)
    kept = expected > 5
    statistic = float(((counts - expected) ** 2 / expected)[kept].sum())
    return abs(statistic - int(kept.sum())) < 6 * math.sqrt(2 * int(kept.sum())) + 6


@settings(deadline=None, max_examples=40)
@given(STATES, st.lists(TIMES, min_size=2, max_size=2, unique=True), st.integers(0, 99))
def test_the_posterior_is_bayes_enumerated(size: int, times: list[float], seed: int) -> None:
    """With p_0 the true p(x_0 | x_t) of any data it is the true p(x_s | x_t); of a certain x_0 it is q(x_s | x_0, x_t)."""
    s, t = sorted(times)
    process, (low_SS, high_SS) = UniformProcess(size), chain(size, s, t)
    data_S = random_distribution(1, size, seed)[0]
    joint_0t = data_S[:, None] * (low_SS @ high_SS)
    q_NS = process.posterior(torch.arange(size), (joint_0t / joint_0t.sum(0)).T, *at(t, s))
    joint_st = (data_S @ low_SS)[:, None] * high_SS
    torch.testing.assert_close(q_NS, (joint_st / joint_st.sum(0)).T, atol=1e-12, rtol=1e-9)
    for x_0 in range(size):
        path_st = low_SS[x_0, :, None] * high_SS
        sure_NS = torch.eye(size).double()[[x_0]].expand(size, -1)
        found_NS = process.posterior(torch.arange(size), sure_NS, *at(t, s))
        torch.testing.assert_close(found_NS, (path_st / path_st.sum(0)).T, atol=1e-12, rtol=1e-9)


@settings(deadline=None, max_examples=40)
@given(STATES, st.lists(TIMES, min_size=2, max_size=2, unique=True), st.integers(0, 99))
def test_duos_reverse_step_is_this_one(size: int, times: list[float], seed: int) -> None:
    """q(x_s | x_t, x_0 ~ x) of Duo (Sahoo et al. 2025; UDLM, Schiff et al. 2024, Eq. 16) with x the distribution from the other positions
    is Σ_v q(x_s | v, x_t) p(v | x_t), p(v | x_t) ~ x(v) q(x_t | v)."""
    s, t = sorted(times)
    process, (a_s, a_t) = UniformProcess(size), (1 - 0.999 * time for time in (s, t))
    x_S, a_ts = random_distribution(1, size, seed)[0], a_t / a_s
    z_SS = torch.eye(size).double()  # one-hot x_t, a row each
    above = size * a_t * x_S * z_SS + (a_ts - a_t) * z_SS + (a_s - a_t) * x_S + (1 - a_ts) * (1 - a_s) / size
    duo_SS = above / (size * a_t * x_S[:, None] + 1 - a_t)
    odds = process.log_odds(-torch.log(at(a_t)))
    p_SS = (x_S.log() + z_SS * odds).softmax(1)
    torch.testing.assert_close(process.posterior(torch.arange(size), p_SS, *at(t, s)), duo_SS, atol=1e-12, rtol=1e-9)


@settings(deadline=None, max_examples=20)
@given(STATES, TIMES)
def test_log_odds_are_of_the_forward_process(size: int, t: float) -> None:
    alpha = 1 - 0.999 * t
    q_SS = step(size, alpha)
    found = UniformProcess(size).log_odds(at(-math.log(alpha)))
    torch.testing.assert_close(found, at(math.log(float(q_SS[0, 0] / q_SS[0, 1]))))


def test_samples_follow_the_distributions() -> None:
    """`prior`, `corrupt` and `bridge` against their matrices, each example with its own time."""
    size, count, times = 6, 30_000, (0.05, 0.4, 0.99)
    process = UniformProcess(size)
    start = process.prior(1, count, KeyedRng(0, torch.arange(1)), torch.device("cpu"))
    assert near(torch.bincount(start[0], minlength=size).double(), torch.full((size,), 1 / size).double())
    x_0 = torch.arange(size).repeat(3, count // size)
    x_t = process.corrupt(x_0, at(*times), KeyedRng(1, torch.arange(3)))
    for t, from_0, to_t in zip(times, x_0, x_t, strict=True):
        counts = torch.bincount(from_0 * size + to_t, minlength=size**2).view(size, size).double()
        assert near(counts, step(size, 1 - 0.999 * t))
    t_BD = at(*times)[:, None].expand_as(x_0)
    x_s = process.bridge(torch.full_like(x_0, 4), x_0, t_BD, t_BD / 3, KeyedRng(2, torch.arange(3)).uniform((3, count)))
    assert bool(process.unknown(x_t).all())
    for t, from_0, to_s in zip(times, x_0, x_s, strict=True):
        counts = torch.bincount(from_0 * size + to_s, minlength=size**2).view(size, size).double()
        low_SS, high_SS = chain(size, t / 3, t)
        path_SS = low_SS * high_SS[:, 4]
        assert near(counts, path_SS / path_SS.sum(1, keepdim=True))


def test_reverse_follows_the_posterior() -> None:
    process, count = UniformProcess(6), 20_000
    t_B, s_B, p_SS = at(0.1, 0.8), at(0.02, 0.5), random_distribution(6, 6, 3)
    x_t = torch.arange(6).repeat(2, count)
    x_s = process.reverse(x_t, fixed(p_SS), t_B, s_B, KeyedRng(5, torch.arange(2)))
    for t, s, from_t, to_s in zip(t_B, s_B, x_t, x_s, strict=True):
        counts = torch.bincount(from_t * 6 + to_s, minlength=36).view(6, 6).double()
        assert near(counts, process.posterior(torch.arange(6), p_SS, t, s))


def test_steps_of_the_true_posterior_lead_from_the_prior_to_the_data() -> None:
    """Two positions that depend on each other, in many steps: the joint distribution of the data comes back."""
    size, count, steps = 3, 4000, 40
    process, data_SS = (
        UniformProcess(size),
        torch.tensor([[0.3, 0.0, 0.1], [0.05, 0.2, 0.0], [0.0, 0.05, 0.3]]).double(),
    )

    def predict(x_t: Tensor, t: Tensor, _needed: Tensor, rng: Rng) -> Tensor:
        q_SS = step(size, 1 - 0.999 * float(t[0]))
        joint_BSS = data_SS * q_SS[:, x_t[:, 0]].T[:, :, None] * q_SS[:, x_t[:, 1]].T[:, None]
        u_BD = uniform(rng, tuple(x_t.shape))
        marginals = [joint_BSS.sum(3 - axis) for axis in (1, 2)]
        cdf = [(p / p.sum(1, keepdim=True)).cumsum(1) for p in marginals]
        return torch.stack([(c < u_BD[:, d : d + 1]).sum(1).clamp_max(size - 1) for d, c in enumerate(cdf)], 1)

    rng = KeyedRng(0, torch.arange(count))
    x = process.prior(count, 2, rng, torch.device("cpu"))
    for k in range(steps, 0, -1):
        t_B = torch.full((count,), k / steps, dtype=torch.float64)
        x = process.reverse(x, predict, t_B, t_B - 1 / steps, rng)
    counts = torch.bincount(x[:, 0] * size + x[:, 1], minlength=size**2).view(size, size).double()
    assert float((counts / count - data_SS).abs().max()) < 0.04  # the product in the last steps, and chance
    assert float((data_SS.sum(1, keepdim=True) * data_SS.sum(0) - data_SS).abs().max()) > 0.1


def test_at_time_0_the_bridge_is_x_0() -> None:
    process, t = UniformProcess(5), at(0.7, 0.01)
    x_t, x_0 = torch.tensor([4, 0]), torch.tensor([0, 4])
    assert torch.equal(process.bridge(x_t, x_0, t, torch.zeros_like(t), at(1 - 1e-16, 0.1)), x_0)


def test_it_is_a_process_and_no_batch_changes_a_sample() -> None:
    process = UniformProcess(16)
    assert isinstance(process, Process)
    x_0, times = torch.arange(16).repeat(5, 3), at(0.02, 0.1, 0.3, 0.9, 1.0)
    whole = process.corrupt(x_0, times, KeyedRng(3, torch.arange(5)))
    part = process.corrupt(x_0[3:], times[3:], KeyedRng(3, torch.arange(3, 5)))
    assert torch.equal(whole[3:], part)


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-53])
def test_every_uniform_gives_a_state(u: float) -> None:
    process, one = UniformProcess(3), torch.ones(4, 1, dtype=torch.int64)
    for t, s in ((1.0, 0.999), (1.0, 0.0), (1e-9, 1e-10), (0.5, 0.25)):
        times = [torch.full((4, 1), value, dtype=torch.float64) for value in (t, s, u)]
        found = process.bridge(one, torch.tensor([[0], [1], [2], [1]]), *times)
        assert 0 <= int(found.min()) <= int(found.max()) <= 2
