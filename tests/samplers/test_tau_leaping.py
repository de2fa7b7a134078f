"""Leaps: jumps at the rates of one time, added up."""

import torch

from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.tau_leaping import leap
from di4c_lm.samplers.trajectory import Calls, Decoding, Trajectory
from tests.samplers.helpers import CHAIN, CHAIN_DATA, LEVELS, Exact, run_chain, variation


def trajectory(count: int, *, positions: int = 2) -> Trajectory:
    return Trajectory(
        process=CHAIN,
        times=make_grid("uniform", 2, floor=CHAIN.min_time),
        decoding=Decoding(),
        rng=KeyedRng(0, torch.arange(count)),
        fixed_BD=torch.zeros(count, positions, dtype=torch.bool),
        calls=Calls(Exact()),
    )


def test_many_steps_lead_to_the_data() -> None:
    assert variation(run_chain(Exact(), 6000, 64, "tau_leaping").x, CHAIN_DATA) < 0.04


def test_a_leap_adds_up_poisson_numbers_of_jumps() -> None:
    """From 0 at rates 0.2 to 1 and 0.1 to 2, for a time 1.5: at 0 where there was no jump, at 1 after one to 1 alone."""
    count = 20_000
    x, rates = torch.zeros(count, 2, dtype=torch.int64), torch.tensor([0.0, 0.2, 0.1], dtype=torch.float64)
    moved = leap(trajectory(count), x, rates.expand(2 * count, -1), torch.tensor(1.5, dtype=torch.float64)).flatten()
    none = torch.tensor(-0.45).exp()
    expected = torch.stack([none, none * 0.3, 1 - none * 1.3])
    torch.testing.assert_close(moved.bincount(minlength=LEVELS) / len(moved), expected, atol=0.01, rtol=0)


def test_jumps_stay_within_the_levels() -> None:
    x, high = torch.full((50, 2), 2), torch.full((100, LEVELS), 30.0, dtype=torch.float64)
    assert set(leap(trajectory(50), x, high, torch.tensor(1.0, dtype=torch.float64)).unique().tolist()) <= {0, 1, 2}


def test_the_step_to_0_samples_x_0() -> None:
    net = Exact()
    found = run_chain(net, 10, 1, "tau_leaping")
    assert found.nfe == 1 and torch.equal(found.x, run_chain(Exact(), 10, 1).x)
