"""Blocks: each window is given what came before it."""

import torch

from di4c_lm.samplers.blocks import Blocks
from tests.samplers.helpers import Joint, run


def test_a_window_conditions_on_what_came_before() -> None:
    """Each token equals the one before: a window of 2 that moves by 1 keeps the chain, however long."""
    copy = torch.eye(2) + 1e-9
    options = {"context": 2, "block": 1, "inner": "first_hitting"}
    x = run(Joint(copy), torch.full((400, 7), 2), 1, "blocks", options).x
    assert bool((x == x[:, :1]).all())
    assert abs(float(x[:, 0].double().mean()) - 0.5) < 0.15


def test_windows_that_do_not_overlap_are_independent() -> None:
    x = run(Joint(torch.eye(2) + 1e-9), torch.full((2000, 4), 2), 1, Blocks(context=2, block=2), seed=1).x
    assert abs(float((x[:, 1] == x[:, 2]).double().mean()) - 0.5) < 0.05


def test_no_context_is_one_window() -> None:
    net = Joint(torch.ones(2, 2, 2))
    assert run(net, 20, 3, Blocks()).x.tolist() == run(Joint(torch.ones(2, 2, 2)), 20, 3).x.tolist()


def test_each_window_has_steps_of_its_own_and_the_teacher_their_last() -> None:
    student, teacher, states = Joint(torch.ones(2, 2)), Joint(torch.ones(2, 2)), []
    x_init = torch.full((300, 4), 2)
    blocks = Blocks(context=2, block=2)
    run(student, x_init, 3, blocks, teacher=teacher, hybrid_last=1, on_step=states.append)
    assert len(states) == 6
    assert [round(float(t[0]), 6) for t in teacher.times] == [round(1 / 3, 6)] * 2
