import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.processes.masked import MASKGIT_SCHEDULES, LogLinear, MaskedProcess, Schedule
from di4c_lm.processes.rng import KeyedRng, Rng, uniform
from tests.processes.helpers import fixed

MASK = 4
SCHEDULES = [LogLinear(), MASKGIT_SCHEDULES["cosine"], MASKGIT_SCHEDULES["arccos"]]


def rows(count: int) -> KeyedRng:
    return KeyedRng(0, torch.arange(count))


def near(observed: float, p: float, count: int) -> bool:
    """Within five standard deviations of a binomial share."""
    return abs(observed - p) <= 5 * math.sqrt(p * (1 - p) / count) + 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_corrupt_masks_at_the_schedules_rate(schedule: Schedule, t: float) -> None:
    process = MaskedProcess(MASK, schedule)
    x_0 = torch.arange(4).repeat(200, 50)
    x_t = process.corrupt(x_0, torch.full((200,), t), rows(200))
    masked = x_t == MASK
    assert torch.equal(x_t[~masked], x_0[~masked])
    assert near(float(masked.double().mean()), float(schedule.mask_prob(torch.tensor(t).double())), x_0.numel())


def test_each_example_has_its_own_time() -> None:
    x_t = MaskedProcess(MASK, LogLinear(eps=0.0)).corrupt(
        torch.zeros(3, 1000).long(), torch.tensor([0.0, 0.3, 1.0]), rows(3)
    )
    share = (x_t == MASK).double().mean(1)
    assert share[0] == 0 and share[2] == 1
    assert near(float(share[1]), 0.3, 1000)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("t, s", [(1.0, 0.5), (0.5, 0.4), (0.3, 0.0)])
def test_reveal_frees_masked_positions_at_the_exact_rate(schedule: Schedule, t: float, s: float) -> None:
    process = MaskedProcess(MASK, schedule)
    x_t = torch.full((200, 100), MASK)
    x_t[:, ::4] = 1
    u = rows(200).uniform((200, 100))
    freed = process.revealed(x_t, torch.full((200, 1), t), torch.full((200, 1), s), u)
    assert not bool(freed[:, ::4].any())
    m_t, m_s = (float(schedule.mask_prob(torch.tensor(time).double())) for time in (t, s))
    assert near(float(freed[x_t == MASK].double().mean()), 1 - m_s / m_t, 200 * 75)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_everything_is_revealed_by_time_0(schedule: Schedule) -> None:
    x_t = torch.full((50, 40), MASK)
    u = torch.zeros(50, 40, dtype=torch.float64)  # what keeps a position masked at any s above 0
    t_B1, s_B1 = torch.full((50, 1), 1e-5), torch.zeros(50, 1)
    assert bool(MaskedProcess(MASK, schedule).revealed(x_t, t_B1, s_B1, u).all())
    assert not bool(MaskedProcess(MASK, schedule).revealed(x_t, t_B1, s_B1 + 1e-6, u).any())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_reverse_follows_the_exact_posterior(schedule: Schedule) -> None:
    """Chi-square of x_s against (m_t - m_s) / m_t p_0 for the tokens and m_s / m_t for MASK."""
    count, t, s = 40_000, 0.7, 0.3
    process = MaskedProcess(MASK, schedule)
    p_S = torch.tensor([0.5, 0.3, 0.2 - 1e-3, 1e-3, 0.0])
    x_t = torch.full((count, 1), MASK)
    x_s = process.reverse(x_t, fixed(p_S), torch.full((count,), t), torch.full((count,), s), rows(count))
    m_t, m_s = (float(schedule.mask_prob(torch.tensor(time).double())) for time in (t, s))
    exact = p_S * (m_t - m_s) / m_t
    exact[MASK] = m_s / m_t
    observed = x_s.flatten().bincount(minlength=5)
    assert float(((observed - count * exact) ** 2 / (count * exact)).sum()) < 30  # 4 degrees of freedom


def test_two_steps_are_one() -> None:
    """With a prediction that does not change, going by way of u is going straight."""
    count = 40_000
    process = MaskedProcess(MASK)
    predict = fixed(torch.tensor([0.6, 0.4, 0.0, 0.0, 0.0]))
    times = [torch.full((count,), value) for value in (0.9, 0.5, 0.2)]
    rng = rows(count)
    x_u = process.reverse(torch.full((count, 1), MASK), predict, times[0], times[1], rng)
    x_s = process.reverse(x_u, predict, times[1], times[2], rng)
    exact = torch.tensor([0.6 * 7 / 9, 0.4 * 7 / 9, 0.0, 0.0, 2 / 9])
    observed = x_s.flatten().bincount(minlength=5) / count
    assert all(near(float(o), float(p), count) for o, p in zip(observed, exact, strict=True))


def test_visible_positions_are_carried_over() -> None:
    x_t = torch.tensor([[0, MASK, 3, MASK, 1]]).repeat(100, 1)
    predict = fixed(torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), everywhere=True)
    x_s = MaskedProcess(MASK).reverse(x_t, predict, torch.full((100,), 0.9), torch.full((100,), 0.1), rows(100))
    assert torch.equal(x_s[:, [0, 2, 4]], x_t[:, [0, 2, 4]])
    assert {2, MASK} == set(x_s[:, [1, 3]].flatten().tolist())


def test_the_bridge_shows_x_0_where_a_position_becomes_visible() -> None:
    """At t = 0.8, s = 0.2 a masked position stays so where its uniform is below 1 / 4."""
    x_t, x_0 = torch.tensor([MASK, MASK, 0, 1]), torch.tensor([2, 2, 2, 2])
    t, s = (torch.full((4,), value, dtype=torch.float64) for value in (0.8, 0.2))
    u = torch.tensor([0.24, 0.26, 0.9, 0.1], dtype=torch.float64)
    assert MaskedProcess(MASK).bridge(x_t, x_0, t, s, u).tolist() == [MASK, 2, 0, 1]


def test_x_0_is_asked_for_where_a_position_becomes_visible_and_nowhere_else() -> None:
    """The order of uniforms is a contract: the bridge's first, then those of the prediction."""
    x_t, asked = torch.tensor([[0, MASK, MASK, MASK]]).repeat(50, 1), []

    def predict(x: Tensor, t: Tensor, needed: Tensor, rng: Rng) -> Tensor:
        asked.append((needed, uniform(rng, (50, 4))))
        return torch.where(needed, 1, x)

    t_B, s_B = torch.full((50,), 0.8), torch.full((50,), 0.3)
    x_s = MaskedProcess(MASK).reverse(x_t, predict, t_B, s_B, rows(50))
    ((needed, second),) = asked
    again = rows(50)
    assert torch.equal(needed, (x_t == MASK) & (again.uniform((50, 4)) >= 0.3 / 0.8))
    assert torch.equal(second, again.uniform((50, 4)))
    assert torch.equal(x_s, torch.where(needed, 1, x_t))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]), st.sampled_from([1.0, 30.0]))
def test_constrained_predictions_are_normalised_and_certain_where_visible(
    seed: int, dtype: torch.dtype, scale: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x_t = torch.randint(0, 5, (2, 6), generator=rng)
    logits = torch.randn(2, 6, 5, generator=rng, dtype=dtype) * scale
    p = MaskedProcess(MASK).constrain(logits, x_t).exp()
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 6, dtype=dtype))
    assert bool((p[x_t == MASK][:, MASK] == 0).all())
    visible = x_t != MASK
    assert torch.equal(p[visible], torch.nn.functional.one_hot(x_t, 5).to(dtype)[visible])
    torch.testing.assert_close(p[~visible][:, :MASK], logits[~visible][:, :MASK].softmax(-1))
