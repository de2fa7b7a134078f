"""Blocks: each window is given what came before it."""

import pytest
import torch

from di4c_lm.samplers.blocks import Blocks
from di4c_lm.samplers.first_hitting import FirstHitting
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


def test_ahead_blocks_come_one_after_the_other_and_the_network_sees_all_that_is_masked() -> None:
    """The perfect network, one token a call: the joint distribution, block after block."""
    seen: list[torch.Tensor] = []

    class Watched(Joint):
        def __call__(self, x_t, t, lam=None, cond=None):
            seen.append(x_t)
            return super().__call__(x_t, t, lam, cond)

    p = torch.rand(2, 2, 2, 2, generator=torch.Generator().manual_seed(3)) ** 3
    x = run(Watched(p), torch.full((3000, 4), 2), 2, Blocks(block=2, ahead=True, inner=FirstHitting()), seed=1).x
    assert all(one.shape[1] == 4 for one in seen)
    assert all(bool((one[:, 2:] == 2).all()) for one in seen if bool((one[:, :2] == 2).any(1).all()))
    late = [one for one in seen if bool((one[:, 2:] != 2).any())]
    assert late and all(bool((one[:, :2] != 2).all()) for one in late)
    share = torch.bincount((x * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16) / 3000
    assert float((share - (p / p.sum()).flatten()).abs().max()) < 0.04


@pytest.mark.parametrize("inner", ["ancestral", "confidence", "first_hitting", "remasking"])
def test_ahead_given_tokens_stay_and_no_mask_is_left(inner: str) -> None:
    x_init = torch.tensor([[0, 2, 2, 2, 1, 2, 2], [2, 2, 2, 2, 2, 2, 2]]).repeat(20, 1)
    network = Joint(torch.ones(2, 2, 2, 2, 2, 2, 2))
    x = run(network, x_init, 3, "blocks", {"block": 3, "ahead": True, "inner": inner}).x
    assert bool((x < 2).all()) and bool((x[::2, [0, 4]] == torch.tensor([0, 1])).all())


def test_ahead_of_more_than_the_context_the_window_moves() -> None:
    copy = torch.eye(2) + 1e-9
    blocks = Blocks(context=2, block=1, ahead=True, inner=FirstHitting())
    x = run(Joint(copy), torch.full((200, 6), 2), 1, blocks).x
    assert bool((x == x[:, :1]).all())
