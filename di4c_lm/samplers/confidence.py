"""The sampler of MaskGIT: draw everywhere, keep what the network is surest of."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.samplers.first_hitting import remaining
from di4c_lm.samplers.walk import Walk


@final
@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Chang et al. 2022, section 3.2, with the annealing of MaskGIT-pytorch (Besnier and Chen 2023).

    Step i of n draws a token at every masked position and keeps those with the largest log p(token) + `choice_temperature`
    (1 - i/(n-1)) Gumbel, so many that a share m(s)/m(1) stays masked (a cosine grid gives MaskGIT's counts); at least one a step.
    `guidance` w, with a condition, is ramped as w i/(n-1) (Ho and Salimans 2022), λ the same with and without the condition. A single
    step has w itself.
    """

    choice_temperature: float = 4.5
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if self.choice_temperature < 0:
            raise ValueError(f"choice_temperature must be at least 0, got {self.choice_temperature}")
        if self.guidance < 0:
            raise ValueError(f"guidance must be at least 0, got {self.guidance}")

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """One state an interval. Raises `ValueError` for guidance without a condition."""
        if self.guidance and walk.calls.cond is None:
            raise ValueError(f"guidance={self.guidance} needs a condition (cond), and none was given; text has none")
        num_B, num_steps = walk.masked(x).sum(1), len(times) - 1
        for index, (t, s) in enumerate(pairwise(times)):
            progress = index / (num_steps - 1) if num_steps > 1 else 1.0
            masked_BD = walk.masked(x)
            left_B = masked_BD.sum(1)
            drawn = walk.propose(x, walk.every(t), masked_BD, guidance=self.guidance * progress)
            gumbel_BD = -(-walk.uniform(tuple(x.shape)).clamp_min(2.0**-53).log()).log()
            score_BD = torch.full(x.shape, -torch.inf, dtype=torch.float64, device=x.device)
            score_BD[drawn.row_M, drawn.position_M] = drawn.log_p_M
            score_BD = score_BD + self.choice_temperature * (1 - progress) * gumbel_BD
            keep_B = left_B - torch.minimum(remaining(walk, num_B, times[0], s), (left_B - 1).clamp_min(0))
            rank_BD = score_BD.argsort(1, descending=True).argsort(1)
            token_BD = x.clone()
            token_BD[drawn.row_M, drawn.position_M] = drawn.token_M
            x = torch.where(masked_BD & (rank_BD < keep_B[:, None]), token_BD, x)
            yield x
