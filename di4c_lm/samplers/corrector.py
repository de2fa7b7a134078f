"""Predictor and corrector: after each reverse step, steps back and forth at the same noise level."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.samplers.ancestral import reverse_step
from di4c_lm.samplers.walk import Walk


@final
@dataclass(frozen=True, kw_only=True)
class PredictorCorrector:
    """Forward-backward corrections (Campbell et al. 2022, section 4.4; Gat et al. 2024, section 3.3 for masks).

    After the reverse step from t to s, `corrections` times: noise goes forward from s to r = s + `size` (t - s), where each visible token
    is masked with probability 1 - (1 - m(r)) / (1 - m(s)), and an exact reverse step leads back to s. Both leave the law at s as it is
    where the network is exact. One call a correction; given tokens stay.
    """

    corrections: int = 1
    size: float = 1.0

    def __post_init__(self) -> None:
        if self.corrections < 0:
            raise ValueError(f"corrections must be at least 0, got {self.corrections}")
        if not 0 < self.size <= 1:
            raise ValueError(f"size must be in (0, 1], got {self.size}")

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """One state a reverse step and one a correction."""
        for t, s in pairwise(times):
            x = reverse_step(walk, x, t, s)
            yield x
            for _ in range(self.corrections):
                r = s + self.size * (t - s)
                keep = (1 - walk.mask_prob(r)) / (1 - walk.mask_prob(s))
                hidden_BD = ~walk.fixed_BD & (walk.uniform(tuple(x.shape)) >= keep)
                x = reverse_step(walk, torch.where(hidden_BD, walk.process.mask_id, x), r, s)
                yield x
