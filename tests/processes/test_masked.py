import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.processes.schedules import Arccos, Cosine, LogLinear, Schedule

MASK = 4
SCHEDULES = [LogLinear(), Cosine(), Arccos()]


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
    freed = process.reveal(x_t, torch.full((200,), t), torch.full((200,), s), rows(200))
    assert not bool(freed[:, ::4].any())
    m_t, m_s = (float(schedule.mask_prob(torch.tensor(time).double())) for time in (t, s))
    assert near(float(freed[x_t == MASK].double().mean()), 1 - m_s / m_t, 200 * 75)


def test_everything_is_revealed_by_time_0() -> None:
    x_t = torch.full((50, 40), MASK)
    assert bool(MaskedProcess(MASK).reveal(x_t, torch.full((50,), 1e-5), torch.zeros(50), rows(50)).all())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_step_follows_the_exact_posterior(schedule: Schedule) -> None:
    """Chi-square of x_s against (m_t - m_s) / m_t p_0 for the tokens and m_s / m_t for MASK."""
    count, t, s = 40_000, 0.7, 0.3
    process = MaskedProcess(MASK, schedule)
    p_S = torch.tensor([0.5, 0.3, 0.2 - 1e-3, 1e-3, 0.0])
    x_s = process.step(
        torch.full((count, 1), MASK),
        p_S.log().expand(count, 1, 5),
        torch.full((count,), t),
        torch.full((count,), s),
        rows(count),
    )
    m_t, m_s = (float(schedule.mask_prob(torch.tensor(time).double())) for time in (t, s))
    exact = p_S * (m_t - m_s) / m_t
    exact[MASK] = m_s / m_t
    observed = x_s.flatten().bincount(minlength=5)
    assert float(((observed - count * exact) ** 2 / (count * exact)).sum()) < 30  # 4 degrees of freedom


def test_two_steps_are_one() -> None:
    """With a prediction that does not change, going by way of u is going straight."""
    count = 40_000
    process = MaskedProcess(MASK)
    log_p = torch.tensor([0.6, 0.4, 0.0, 0.0, 0.0]).log().expand(count, 1, 5)
    times = [torch.full((count,), value) for value in (0.9, 0.5, 0.2)]
    rng = rows(count)
    x_u = process.step(torch.full((count, 1), MASK), log_p, times[0], times[1], rng)
    x_s = process.step(x_u, log_p, times[1], times[2], rng)
    exact = torch.tensor([0.6 * 7 / 9, 0.4 * 7 / 9, 0.0, 0.0, 2 / 9])
    observed = x_s.flatten().bincount(minlength=5) / count
    assert all(near(float(o), float(p), count) for o, p in zip(observed, exact, strict=True))


def test_visible_positions_are_carried_over() -> None:
    process = MaskedProcess(MASK)
    x_t = torch.tensor([[0, MASK, 3, MASK, 1]]).repeat(100, 1)
    log_p = torch.zeros(100, 5, 5).log_softmax(-1)
    x_s = process.step(x_t, log_p, torch.full((100,), 0.9), torch.full((100,), 0.1), rows(100))
    assert torch.equal(x_s[:, [0, 2, 4]], x_t[:, [0, 2, 4]])


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
