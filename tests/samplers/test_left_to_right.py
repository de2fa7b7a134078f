"""From left to right: the first of what is masked, so many as the grid says; one at a time the chain rule."""

import torch

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.left_to_right import LeftToRight
from di4c_lm.samplers.trajectory import sample_keyed
from tests.samplers.helpers import CORRELATED, Even, Joint, p_value, run

MASK = 4


def test_one_position_a_step_samples_the_joint_distribution() -> None:
    found = run(Joint(CORRELATED), 5000, 3, "left_to_right")
    assert p_value(found.x, CORRELATED) > 1e-4
    assert found.nfe == 3


def shown(x_init: torch.Tensor, steps: int, grid: str = "uniform") -> list[torch.Tensor]:
    """Which positions are visible after each step."""
    states: list[torch.Tensor] = []
    sample_keyed(
        Even(MASK),
        MaskedProcess(MASK),
        (len(x_init), x_init.shape[1]),
        make_grid(grid, steps),
        seed=0,
        sampler=LeftToRight(),
        x_init=x_init,
        on_step=states.append,
    )
    return [state != MASK for state in states]


def test_a_step_reveals_the_first_positions_that_are_masked() -> None:
    """What is given between them stays, and each sequence has its own count."""
    x_init = torch.tensor([[4, 4, 4, 4, 4, 4], [1, 4, 2, 4, 4, 4]])
    first, second = shown(x_init, 2)
    assert torch.equal(first, torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).bool())
    assert bool(second.all())


def test_the_grid_says_how_many() -> None:
    counts = [int(one.sum()) for one in shown(torch.full((1, 100), MASK), 4, "cosine")]
    assert counts == [8, 30, 62, 100]
