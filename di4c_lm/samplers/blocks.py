"""Text longer than the network's context, window after window."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.walk import Sampler, Walk


@final
@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Semi-autoregressive sampling (Sahoo et al. 2024, section 5.4; Han et al. 2023).

    The first window is the first `context` positions; each next one reaches `block` positions further and is given the last
    `context` - `block` of what was written. `block` = 0 is half of the context. Each window goes down the whole grid by `inner`.
    """

    context: int
    block: int = 0
    inner: Sampler = field(default_factory=Ancestral)

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"context must be at least 1, got {self.context}")
        if not 0 <= self.block <= self.context:
            raise ValueError(f"block must be in [0, context={self.context}], got {self.block}")

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """The whole sequences after each step of each window."""
        length, block = x.shape[1], self.block or max(1, self.context // 2)
        end = min(self.context, length)
        while True:
            start = max(0, end - self.context)
            given, before, after = x[:, start:end], x[:, :start], x[:, end:]
            window = dataclasses.replace(walk, fixed_BD=~walk.masked(given))
            for inside in self.inner.steps(window, given, times):
                x = torch.cat([before, inside, after], 1)
                yield x
            if end == length:
                return
            end = min(end + block, length)
