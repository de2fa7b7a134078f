"""Corrections leave the distribution at their time as it is, and mend what a step has lost."""

import pytest
import torch

from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.corrector import leap_in_place
from di4c_lm.samplers.trajectory import Calls, Decoding, Trajectory
from tests.samplers.helpers import (
    CHAIN,
    CHAIN_DATA,
    CORRELATED,
    LEVELS,
    Even,
    Exact,
    Joint,
    run,
    run_chain,
    shares,
    variation,
)


@pytest.mark.parametrize("size", [0.5, 1.0, 3.0])
def test_as_much_is_masked_as_a_step_back_reveals(size: float) -> None:
    """After each of many corrections the share of MASK is still that of the schedule: too little noise would wear it down."""
    states, steps, corrections = [], 2, 6
    x_init = torch.full((500, 20), 7)
    run(
        Even(7), x_init, steps, "predictor_corrector", {"corrections": corrections, "size": size}, on_step=states.append
    )
    for x in states[: corrections + 1]:
        assert abs(float((x == 7).double().mean()) - 0.999 / 2) < 0.02
    changed = (states[0] != states[1]) & (states[0] != 7) & (states[1] != 7)
    hidden = min(1.0, 0.5 + 0.5 * size) * 0.999  # m(r), of which the step back reveals the share above m(s)
    rate = (hidden - 0.4995) / 0.5005 * (1 - 0.4995 / hidden) * 6 / 7
    assert abs(float(changed.sum() / (states[0] != 7).sum()) - rate) < 0.02


def test_corrections_of_masks_come_near_the_joint_distribution() -> None:
    plain = variation(run(Joint(CORRELATED), 4000, 2).x, CORRELATED)
    mended = run(Joint(CORRELATED), 4000, 2, "predictor_corrector", {"corrections": 8, "size": 0.3}).x
    assert variation(mended, CORRELATED) < 0.7 * plain


def test_corrections_mend_the_correlation_that_a_product_of_levels_loses() -> None:
    """Two predictor steps are far from the data; leaps at fixed time lead back to its distribution there."""
    far = variation(run_chain(Exact(), 40_000, 3).x, CHAIN_DATA)
    mended = run_chain(Exact(), 6000, 3, "predictor_corrector", {"corrections": 24, "size": 0.05}).x
    assert variation(mended, CHAIN_DATA) < 0.6 * far


def test_many_corrected_steps_lead_to_the_data() -> None:
    found = run_chain(Exact(), 6000, 64, "predictor_corrector", {"corrections": 2, "size": 0.5})
    assert variation(found.x, CHAIN_DATA) < 0.04


def test_leaps_in_place_leave_the_distribution_as_it_is() -> None:
    """From x_s of the data itself: the rates forward and backward balance, and one of them alone does not."""
    count, s = 20_000, torch.tensor(0.4, dtype=torch.float64)
    trajectory = Trajectory(
        process=CHAIN,
        times=s[None],
        decoding=Decoding(),
        rng=KeyedRng(1, torch.arange(count)),
        fixed_BD=torch.zeros(count, 2, dtype=torch.bool),
        calls=Calls(Exact()),
    )
    place = torch.multinomial(CHAIN_DATA.flatten(), count, replacement=True, generator=torch.Generator().manual_seed(0))
    x_0 = torch.stack([place // LEVELS, place % LEVELS], 1)
    x = CHAIN.corrupt(x_0, s.expand(count), KeyedRng(2, torch.arange(count)))
    q_SS = CHAIN.transition(s)
    exact = q_SS.T @ (CHAIN_DATA / CHAIN_DATA.sum()) @ q_SS
    span = torch.tensor(0.02, dtype=torch.float64)
    moved = x
    for _ in range(40):
        moved = leap_in_place(trajectory, moved, s, span)
    assert float((moved != x).double().mean()) > 0.1, "they move"
    assert float((shares(moved, LEVELS) - exact).abs().sum() / 2) < 0.02


@pytest.mark.parametrize(
    "options, nfe",
    [({}, 7), ({"corrections": 2}, 10), ({"corrections": 2, "below": 0.4}, 8), ({"predictor": "tau_leaping"}, 7)],
)
def test_calls_on_levels_are_counted(options: dict, nfe: int) -> None:
    """Four steps, of which the last samples x_0 and is not corrected."""
    net, states = Exact(), []
    found = run_chain(net, 5, 4, "predictor_corrector", options, on_step=states.append)
    assert found.nfe == nfe == net.calls / 5 == len(states)


def test_steps_above_a_time_are_not_corrected() -> None:
    states = []
    run(Joint(CORRELATED), 5, 4, "predictor_corrector", {"below": 0.3}, on_step=states.append)
    assert len(states) == 4 + 2
