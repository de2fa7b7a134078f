"""Remasking: as much is masked as the schedule says, whatever is put back."""

import pytest
import torch

from tests.samplers.helpers import Even, run

COUNT, POSITIONS, STATES = 400, 50, 5


@pytest.mark.parametrize(
    "schedule, eta", [("cap", 0.02), ("cap", 0.2), ("cap", 1.0), ("rescale", 0.5), ("rescale", 1.0)]
)
def test_the_share_of_mask_is_that_of_the_schedule(schedule: str, eta: float) -> None:
    """At every time, be σ small or at its cap: there, late, more than m(s) / (1 - m(t)) put back would be too many."""
    states = []
    options = {"schedule": schedule, "eta": eta}
    run(Even(STATES), torch.full((COUNT, POSITIONS), STATES), 10, "remasking", options, on_step=states.append)
    for x, s in zip(states, [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], strict=True):
        assert abs(float((x == STATES).double().mean()) - 0.999 * s) < 0.02


@pytest.mark.parametrize(
    "options, rates",
    [
        ({"eta": 0.2}, [0.2, 0.2, 0.2]),
        ({"eta": 0.8}, [0.8, 0.5, 0.2 / 0.75]),  # σ_max = min(1, m(s) / (1 - m(t))) is 1, 0.5, 0.2 / 0.75
        ({"schedule": "rescale", "eta": 0.5}, [0.5, 0.25, 0.1 / 0.75]),
    ],
)
def test_visible_tokens_are_put_back_at_rate_sigma(options: dict, rates: list[float]) -> None:
    states, grid = [], (1.0, 0.75, 0.5, 0.25, 0.2, 0.0)
    run(Even(STATES), torch.full((COUNT, POSITIONS), STATES), 5, "remasking", options, grid=grid, on_step=states.append)
    for before, after, rate in zip(states, states[1:4], rates, strict=False):
        again = (after == STATES)[before != STATES]
        assert abs(float(again.double().mean()) - rate) < 0.03


def test_given_tokens_are_never_masked_again() -> None:
    states = []
    x_init = torch.full((COUNT, 4), STATES)
    x_init[:, 2] = 3
    run(Even(STATES), x_init, 6, "remasking", {"eta": 1.0}, on_step=states.append)
    assert all(bool((x[:, 2] == 3).all()) for x in states)
