import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from di4c_lm.objectives.settings import Di4CConfig, HopConfig, TimesConfig
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.processes.times import hop_down, sample_times, times_and_hops

COUNT = 20_000
DELTA = 0.02


def times(**options) -> Tensor:
    return sample_times(TimesConfig(**options), COUNT, KeyedRng(0, torch.arange(COUNT)), delta=DELTA)


def is_uniform(u: Tensor) -> bool:
    """Kolmogorov-Smirnov at once in 8 000 times."""
    steps = (torch.arange(len(u)) + 0.5) / len(u)
    return float((u.sort().values - steps).abs().max()) * math.sqrt(len(u)) < 2.2


def near(observed: float, p: float, count: int = COUNT) -> bool:
    return abs(observed - p) < 5 * math.sqrt(p * (1 - p) / count)


def test_uniform_times_leave_0_out() -> None:
    t = times(law="uniform")
    assert is_uniform(t)
    assert float(t.min()) > 0 and float(t.max()) <= 1


def test_the_papers_law() -> None:
    t = times(law="paper")
    low = t <= DELTA
    assert near(float(low.double().mean()), 0.3)
    assert is_uniform(t[low] / DELTA)
    assert is_uniform((t[~low] - DELTA) / (1 - DELTA))


@pytest.mark.parametrize("law", ["uniform", "paper"])
def test_shares_at_one_and_on_the_grids(law: str) -> None:
    t = times(law=law, mass_at_one=0.25, grid_share=0.5, grid_steps=(1, 4))
    seen = Counter(t.tolist())
    # A grid of 1 step and one of 4, each half of the time: 1 comes with 1/2 + 1/8, the quarters with 1/8 each.
    assert near(seen[1.0] / COUNT, 0.25 + 0.5 * (0.5 + 0.125))
    for value in (0.25, 0.5, 0.75):
        assert near(seen[value] / COUNT, 0.5 * 0.125)
    rest = t[~torch.isin(t, torch.tensor([0.25, 0.5, 0.75, 1.0]).double())]
    assert near(len(rest) / COUNT, 0.25)
    if law == "uniform":
        assert is_uniform(rest)


def test_all_mass_can_be_put_at_one() -> None:
    assert bool((times(mass_at_one=1.0) == 1).all())


def hops(t: Tensor, **options) -> Tensor:
    u = hop_down(HopConfig(**options), t, KeyedRng(0, torch.arange(len(t))))
    assert bool((u < t).all()) and bool((u >= 0).all())
    return t - u


def test_fixed_hops_are_halved_where_they_do_not_fit() -> None:
    t = torch.tensor([1.0, 0.5, 1e-3, 1e-5], dtype=torch.float64)
    expected = torch.tensor([1 / 1024, 1 / 1024, 5e-4, 5e-6], dtype=torch.float64)
    torch.testing.assert_close(hops(t, law="fixed", size=1 / 1024), expected)


def test_hops_by_a_fraction() -> None:
    t = torch.tensor([1.0, 0.5, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(hops(t, law="fraction", size=0.25), t / 4)


@pytest.mark.parametrize("law", ["uniform", "log_uniform"])
def test_random_hops(law: str) -> None:
    low, high = 0.001, 0.01
    hop = hops(torch.ones(COUNT, dtype=torch.float64), law=law, low=low, high=high)
    place = (hop - low) / (high - low) if law == "uniform" else (hop / low).log() / math.log(high / low)
    assert is_uniform(place)
    short = hops(torch.full((COUNT,), 0.004, dtype=torch.float64), law=law, low=low, high=high)
    assert float(short.max()) <= 0.002


def test_times_above_the_hop() -> None:
    """t ~ U(floor + hop, 1] with log t - u uniform: CIFAR-10's law."""
    hop = HopConfig(law="log_uniform", low=0.001, high=0.01)
    rng, law = KeyedRng(0, torch.arange(COUNT)), TimesConfig(law="above_hop")
    t, u = times_and_hops(law, hop, COUNT, rng, delta=DELTA, floor=0.01)
    assert is_uniform((t - u).div(0.001).log() / math.log(10))
    assert is_uniform((t - 0.01 - (t - u)) / (0.99 - (t - u)))
    assert float(u.min()) > 0.01 and float(t.max()) <= 1


@pytest.mark.parametrize("law", ["fixed", "fraction", "log_uniform", "uniform"])
def test_no_hop_ends_below_the_floor(law) -> None:
    t = 0.1 + 0.9 * times(law="uniform")
    u = hop_down(HopConfig(law=law, size=0.5, low=0.2, high=0.4), t, KeyedRng(1, torch.arange(COUNT)), floor=0.1)
    assert bool(((t - 0.1) / 2 <= u - 0.1 + 1e-12).all()) and bool((u < t).all())


def test_a_hop_that_looks_at_the_time_cannot_come_first() -> None:
    with pytest.raises(ValueError, match=r"hop\.law must be fixed, log_uniform or uniform where .*, got 'fraction'"):
        Di4CConfig(times=TimesConfig(law="above_hop"), hop=HopConfig(law="fraction", size=0.5))
    with pytest.raises(ValueError, match=r"hop must be at most 0\.5 .*, got 0\.6"):
        Di4CConfig(times=TimesConfig(law="above_hop"), hop=HopConfig(size=0.6))
