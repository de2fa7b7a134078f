"""The teacher's step: its size, and where it leads."""

import math

import pytest
import torch
from torch import Tensor

from di4c_lm.objectives.teacher_step import TeacherStep, bridged, step_down, uniform_at
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.masked import Times
from di4c_lm.processes.rng import KeyedRng
from tests.objectives.helpers import CODES, GAUSSIAN, LENGTH, LEVELS, MASK, MASKED, pixel_network, text_network

COUNT = 20_000


def is_uniform(u: Tensor) -> bool:
    """Kolmogorov-Smirnov at once in 8 000 times."""
    steps = (torch.arange(len(u)) + 0.5) / len(u)
    return float((u.sort().values - steps).abs().max()) * math.sqrt(len(u)) < 2.2


def times(step: TeacherStep, floor: float = 0.0) -> tuple[Tensor, Tensor]:
    rng, device = KeyedRng(0, torch.arange(COUNT)), torch.device("cpu")
    return step.sample_times(Times(), COUNT, rng, delta=0.02, floor=floor, device=device)


def test_fixed_steps_are_halved_where_they_do_not_fit() -> None:
    t = torch.tensor([1.0, 0.5, 1e-3, 1e-5], dtype=torch.float64)
    expected = torch.tensor([1 / 1024, 1 / 1024, 5e-4, 5e-6], dtype=torch.float64)
    torch.testing.assert_close(t - TeacherStep(size=1 / 1024).end(t), expected)


def test_steps_by_a_fraction() -> None:
    t = torch.tensor([1.0, 0.5, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(t - TeacherStep(distribution="fraction", size=0.25).end(t), t / 4)


def test_log_uniform_steps_come_before_the_time() -> None:
    """t ~ U(floor + step, 1] with log t - u uniform: as in CIFAR-10's run."""
    t, u = times(TeacherStep(distribution="log_uniform", low=0.001, high=0.01), floor=0.01)
    assert is_uniform((t - u).div(0.001).log() / math.log(10))
    assert is_uniform((t - 0.01 - (t - u)) / (0.99 - (t - u)))
    assert float(u.min()) > 0.01 and float(t.max()) <= 1


@pytest.mark.parametrize("distribution", ["fixed", "fraction", "log_uniform"])
def test_no_step_ends_below_the_floor(distribution) -> None:
    t, u = times(TeacherStep(distribution=distribution, size=0.5, low=0.2, high=0.4), floor=0.1)
    assert bool((u > 0.1).all()) and bool((u < t).all()) and bool((t <= 1).all())
    if distribution != "log_uniform":
        assert bool(((t - 0.1) / 2 <= u - 0.1 + 1e-12).all())


def test_equal_steps_lead_from_t_to_u() -> None:
    t, u = torch.tensor([0.9, 0.5]), torch.tensor([0.3, 0.2])
    found = torch.stack(TeacherStep(steps=3).between(t, u))
    torch.testing.assert_close(found, torch.tensor([[0.9, 0.5], [0.7, 0.4], [0.5, 0.3], [0.3, 0.2]]))


@pytest.mark.parametrize(
    "said, message",
    [
        ({"size": 0.0}, r"size must be .*\(0, 1\], got 0.0"),
        ({"low": 0.1, "high": 0.01}, "low must be .*high=0.01.*, got 0.1"),
        ({"high": 0.6}, "high must be .*at most 0.5, got 0.6"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_named(said: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherStep(**said)


@pytest.mark.parametrize("latent", [None, CODES], ids=["product", "mixture"])
def test_masked_positions_are_revealed_at_the_rate_of_the_process(latent) -> None:
    x_t, t_B = torch.full((800, LENGTH), MASK), torch.full((800,), 0.8, dtype=torch.float64)
    x_t[:, 0] = 3
    u_B = TeacherStep(distribution="fraction", size=0.25).end(t_B)
    steps = TeacherStep(steps=3).between(t_B, u_B)
    rng, positions = KeyedRng(1, torch.arange(800)), Positions.where(x_t == MASK)
    teacher_MS, x_u = step_down(text_network(latent, 2), MASKED, x_t, positions, steps, 2, rng)
    hidden = float((x_u[:, :, 1:] == MASK).double().mean())
    assert abs(hidden - float(u_B[0] / t_B[0])) < 0.01
    assert bool((x_u[:, :, 0] == 3).all()), "what is visible at t stays"
    torch.testing.assert_close(teacher_MS.sum(1), torch.ones(len(teacher_MS), dtype=torch.float64))
    assert float((x_u[:, 0] != x_u[:, 1]).any(1).double().mean()) > 0.5, "each sample goes its own way"


def test_x_u_follows_the_teachers_posterior() -> None:
    """Over many samples at one x_t: each position's distribution is the posterior of the teacher's."""
    x_t, times_S1 = torch.tensor([[0, 4, 2, 1]]), [torch.tensor([time]).double() for time in (0.6, 0.4)]
    positions = Positions.where(torch.ones_like(x_t, dtype=torch.bool))
    rng = KeyedRng(0, torch.arange(1))
    teacher_MS, x_u = step_down(pixel_network(None, 2), GAUSSIAN, x_t, positions, times_S1, 6000, rng)
    expected_DS = GAUSSIAN.posterior(x_t[0], teacher_MS, times_S1[0][0], times_S1[1][0])
    found_DS = torch.nn.functional.one_hot(x_u[0], LEVELS).double().mean(0)
    assert bool(((found_DS - expected_DS).abs() <= 5 * (expected_DS * (1 - expected_DS) / 6000).sqrt()).all())


def test_the_marginals_are_the_teachers_own() -> None:
    x_t = torch.tensor([[MASK, 1, MASK, 2, 3, MASK]])
    teacher, positions = text_network(None, 2), Positions.where(x_t == MASK)
    times_S1 = [torch.tensor([time]).double() for time in (0.5, 0.4)]
    teacher_MS, _ = step_down(teacher, MASKED, x_t, positions, times_S1, 3, KeyedRng(0, torch.arange(1)))
    expected = teacher(x_t, times_S1[0].float()).log_probs()[0, 0][positions.position].exp()
    torch.testing.assert_close(teacher_MS, expected.detach())


def test_a_step_towards_what_is_known_reveals_its_share() -> None:
    """q(x_u | x_t, x_0): each masked position is revealed with (t - u) / t, whatever the others are."""
    x_0 = torch.arange(LENGTH).expand(2, -1) % MASK
    x_t = x_0.clone()
    x_t[:, ::2] = MASK
    t, u = torch.tensor([0.8, 0.4], dtype=torch.float64), torch.tensor([0.6, 0.3], dtype=torch.float64)
    positions, rng = Positions.where(x_t == MASK), KeyedRng(0, torch.arange(2))
    known_MI, chosen_by = positions.gather(x_0)[:, None].expand(-1, COUNT), uniform_at(positions, rng, COUNT, LENGTH)
    x_u = bridged(MASKED, x_t, known_MI, positions, t, u, chosen_by)
    assert bool(((x_u == MASK) | (x_u == x_0[:, None])).all())
    assert bool((x_u[:, :, 1::2] == x_0[:, None, 1::2]).all())
    revealed = (x_u[:, :, ::2] != MASK).double()
    torch.testing.assert_close(revealed.mean((1, 2)), 1 - u / t, atol=0.01, rtol=0)
    torch.testing.assert_close(revealed[..., 0].mul(revealed[..., 1]).mean(1), (1 - u / t) ** 2, atol=0.015, rtol=0)
