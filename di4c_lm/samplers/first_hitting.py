"""The first-hitting sampler: token by token in random order, at the times at which the process would have revealed them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from di4c_lm.samplers.walk import Walk

_HALVINGS = 60


@final
@dataclass(frozen=True, kw_only=True)
class FirstHitting:
    """Zheng et al. 2024, section 4: of n masked positions one chosen at random becomes visible next, at the time at which m(t) has fallen
    by a factor u^(1/n).

    With `tokens_per_call` = 1 the law is that of infinitely many ancestral steps, in as many calls as there are tokens, whatever the
    grid. More tokens a call is its parallel form: they are drawn together, at the time of the first. With 0 the grid says how many: after
    the step to s a share m(s)/m(1) of the positions is left.
    """

    tokens_per_call: int = 1

    def __post_init__(self) -> None:
        if self.tokens_per_call < 0:
            raise ValueError(f"tokens_per_call must be at least 0, got {self.tokens_per_call}")

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """One state a call, or with `tokens_per_call` = 0 one an interval."""
        masked_BD = walk.masked(x)
        rank_BD = _random_ranks(masked_BD, walk.uniform(tuple(x.shape)))
        hit_BD = _hitting_levels(walk, masked_BD)
        num_B = masked_BD.sum(1)
        done_B = torch.zeros_like(num_B)
        for shown_B in self._targets(walk, num_B, times):
            level_B = hit_BD.gather(1, done_B.clamp_max(x.shape[1] - 1)[:, None])[:, 0]
            where_BD = masked_BD & (rank_BD >= done_B[:, None]) & (rank_BD < shown_B[:, None])
            x = walk.draw_at(x, time_of_level(walk, level_B), where_BD)
            done_B = shown_B
            yield x

    def _targets(self, walk: Walk, num_B: Int64[Tensor, " B"], times: Float64[Tensor, " n"]) -> Iterator[Tensor]:
        """How many tokens of each sequence are visible after each call."""
        if self.tokens_per_call:
            for shown in range(self.tokens_per_call, int(num_B.max()) + self.tokens_per_call, self.tokens_per_call):
                yield num_B.clamp_max(shown)
            return
        for s in times[1:]:
            yield num_B - remaining(walk, num_B, times[0], s)


def remaining(
    walk: Walk, num_B: Int64[Tensor, " B"], start: Float64[Tensor, ""], s: Float64[Tensor, ""]
) -> Int64[Tensor, " B"]:
    """How many of `num_B` places masked at `start` are so at s: their expected number rounded down, none at s = 0."""
    share = walk.mask_prob(s) / walk.mask_prob(start)
    return torch.zeros_like(num_B) if s == 0 else (num_B * share + 1e-9).floor().long()


def time_of_level(walk: Walk, level_B: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """The t with m(t) = `level_B`, by bisection."""
    low_B, high_B = torch.zeros_like(level_B), torch.ones_like(level_B)
    for _ in range(_HALVINGS):
        middle_B = (low_B + high_B) / 2
        above_B = walk.mask_prob(middle_B) > level_B
        low_B, high_B = torch.where(above_B, low_B, middle_B), torch.where(above_B, middle_B, high_B)
    return high_B


def _random_ranks(masked_BD: Bool[Tensor, "B D"], u_BD: Float64[Tensor, "B D"]) -> Int64[Tensor, "B D"]:
    """The place of each masked position in a random order of those of its sequence; the others come after."""
    return torch.where(masked_BD, u_BD, 2.0).argsort(1).argsort(1)


def _hitting_levels(walk: Walk, masked_BD: Bool[Tensor, "B D"]) -> Float64[Tensor, "B D"]:
    """m at the k-th hitting time of each sequence, descending: m(1) u_1^(1/n) u_2^(1/(n-1)) ..., the order statistics of n uniforms."""
    k_D = torch.arange(masked_BD.shape[1], device=masked_BD.device)
    left_BD = (masked_BD.sum(1, keepdim=True) - k_D).clamp_min(1)
    u_BD = 1 - walk.uniform(tuple(masked_BD.shape))
    one = torch.ones((), dtype=torch.float64, device=masked_BD.device)
    return walk.mask_prob(one) * (u_BD.log() / left_BD).cumsum(1).exp()
