"""Distributions of the training time t."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from di4c_lm.core.settings import Ints, check, section, setting, unit
from di4c_lm.processes.rng import Rng, uniform

_PAPER_LOW_SHARE = 0.3  # of the times lie below δ (published configuration of Di4C's text run)


@section
class Times:
    """Distribution of t in (0, 1]: `uniform`, or `paper`: with probability 0.3 uniform on (0, δ], else on (δ, 1].

    A share `grid_share` is moved to the times of uniform grids of K steps, K uniform in `grid_steps`. Where the lowest time of a process
    is above 0, 0 stands for that.
    """

    distribution: Literal["uniform", "paper"] = setting(
        "uniform", "paper: 30 % of the times below δ, as in Di4C's text run"
    )
    grid_share: float = setting(0.0, "share of the times that are those of uniform grids")
    grid_steps: Ints = setting((1, 2, 4, 8, 16), "step counts of these grids, each as likely")

    def __post_init__(self) -> None:
        unit(self, "grid_share")
        steps = self.grid_steps
        check(len(steps) > 0 and min(steps) >= 1, "grid_steps", steps, "step counts of at least 1")

    def sample(
        self, num_examples: int, rng: Rng, *, delta: float = 0.0, device: torch.device | str = "cpu"
    ) -> Float[Tensor, " B"]:
        """One time an example."""
        place_B, low_B, kind_B, grid_B = uniform(rng, (num_examples, 4), device).unbind(1)
        t_B = 1 - place_B
        if self.distribution == "paper":
            t_B = torch.where(low_B < _PAPER_LOW_SHARE, delta * t_B, delta + (1 - delta) * t_B)
        counts_K = torch.tensor(self.grid_steps, device=device)
        num_steps_B = counts_K[(low_B * len(counts_K)).long()]
        on_grid_B = ((grid_B * num_steps_B).floor() + 1) / num_steps_B
        return torch.where(kind_B < self.grid_share, on_grid_B, t_B)


def above(t: Float[Tensor, " B"], floor: float | Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """`t` in (0, 1] moved to (floor, 1]."""
    return floor + (1 - floor) * t
