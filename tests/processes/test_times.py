import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from di4c_lm.processes.masked import Times, above
from di4c_lm.processes.rng import KeyedRng

COUNT = 20_000
DELTA = 0.02


def times(**options) -> Tensor:
    return Times(**options).sample(COUNT, KeyedRng(0, torch.arange(COUNT)), delta=DELTA)


def is_uniform(u: Tensor) -> bool:
    """Kolmogorov-Smirnov at once in 8 000 times."""
    steps = (torch.arange(len(u)) + 0.5) / len(u)
    return float((u.sort().values - steps).abs().max()) * math.sqrt(len(u)) < 2.2


def near(observed: float, p: float, count: int = COUNT) -> bool:
    return abs(observed - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_uniform_times_leave_0_out() -> None:
    t = times()
    assert is_uniform(t)
    assert float(t.min()) > 0 and float(t.max()) <= 1


def test_the_least_uniform_is_no_time_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "di4c_lm.processes.masked.uniform", lambda _, shape, __: torch.zeros(shape, dtype=torch.float64)
    )
    assert all(float(times(distribution=name).min()) > 0 for name in ("uniform", "paper"))


def test_the_papers_distribution() -> None:
    t = times(distribution="paper")
    low = t <= DELTA
    assert near(float(low.double().mean()), 0.3)
    assert is_uniform(t[low] / DELTA)
    assert is_uniform((t[~low] - DELTA) / (1 - DELTA))


@pytest.mark.parametrize("distribution", ["uniform", "paper"])
def test_a_share_on_the_grids(distribution) -> None:
    t = times(distribution=distribution, grid_share=0.5, grid_steps=(1, 4))
    seen = Counter(t.tolist())
    # A grid of 1 step and one of 4, each half of the time: 1 comes with 1/2 + 1/8, the quarters with 1/8 each.
    assert near(seen[1.0] / COUNT, 0.5 * (0.5 + 0.125))
    for value in (0.25, 0.5, 0.75):
        assert near(seen[value] / COUNT, 0.5 * 0.125)
    rest = t[~torch.isin(t, torch.tensor([0.25, 0.5, 0.75, 1.0]).double())]
    assert near(len(rest) / COUNT, 0.5)
    if distribution == "uniform":
        assert is_uniform(rest)


def test_all_times_can_be_one() -> None:
    assert bool((times(grid_share=1.0, grid_steps=(1,)) == 1).all())


def test_times_above_a_floor() -> None:
    t = above(times(), 0.2)
    assert is_uniform((t - 0.2) / 0.8) and float(t.min()) > 0.2


@pytest.mark.parametrize("said", [{"grid_share": 1.5}, {"grid_steps": ()}, {"grid_steps": (0, 2)}])
def test_settings_that_cannot_be_are_named(said: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(said))} must be"):
        Times(**said)
