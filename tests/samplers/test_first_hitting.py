"""First hitting: the limit of infinitely many steps, at the times at which the process would have revealed each token."""

import pytest
import torch

from di4c_lm.processes.masked import MASKGIT_SCHEDULES, LogLinear, Schedule
from di4c_lm.samplers.first_hitting import time_of_level
from tests.samplers.helpers import CORRELATED, Joint, p_value, run


@pytest.mark.parametrize("name, steps", [("first_hitting", 1), ("first_hitting_parallel", 3)])
def test_one_token_at_a_time_samples_the_joint_distribution(name: str, steps: int) -> None:
    found = run(Joint(CORRELATED), 5000, steps, name)
    assert p_value(found.x, CORRELATED) > 1e-4
    assert found.nfe == 3


def test_hitting_times_fall_and_the_first_is_the_largest_of_uniforms() -> None:
    """Of 3 masked positions the first is hit at m(t) = m(1) u^(1/3), whose mean is 3/4."""
    net = Joint(CORRELATED)
    run(net, 4000, 1, "first_hitting")
    t_KB = torch.stack(net.times)
    assert bool((t_KB.diff(dim=0) < 0).all())
    assert t_KB.mean(1).tolist() == pytest.approx([0.75, 0.5, 0.25], abs=0.02)


@pytest.mark.parametrize("tokens, calls", [(1, 3), (2, 2), (3, 1), (5, 1)])
def test_tokens_of_a_call_are_sampled_together(tokens: int, calls: int) -> None:
    assert run(Joint(CORRELATED), 50, 9, "first_hitting", {"tokens_per_call": tokens}).nfe == calls


def test_every_order_is_as_likely() -> None:
    """The first of three positions to become visible is each one in a third of the sequences."""
    states = []
    run(Joint(CORRELATED), 6000, 1, "first_hitting", on_step=states.append)
    first = (states[0] != 3).double().mean(0)
    assert first.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


@pytest.mark.parametrize("schedule", [LogLinear(), MASKGIT_SCHEDULES["cosine"], MASKGIT_SCHEDULES["arccos"]])
def test_a_level_leads_back_to_its_time(schedule: Schedule) -> None:
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    torch.testing.assert_close(time_of_level(schedule, schedule.mask_prob(t)), t, rtol=0, atol=1e-7)
