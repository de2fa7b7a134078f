"""The sampler of MaskGIT: draw everywhere, keep what the network is surest of."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.samplers.first_hitting import remaining
from di4c_lm.samplers.walk import Walk

Counts = Literal["expected", "published"]


@final
@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Chang et al. 2022, section 3.2, with the annealing of MaskGIT-pytorch (Besnier and Chen 2023).

    Step i of n draws a token at every masked position and keeps those with the largest log p(token) + `choice_temperature`
    (1 - i/(n-1)) Gumbel, so many that a share m(s)/m(1) stays masked (a cosine grid gives MaskGIT's counts); at least one a step.
    `counts=published` takes the published numbers of tokens a step in place of that share, as `published_counts` says.
    `guidance` w, with a condition, is ramped as w i/(n-1) (Ho and Salimans 2022), λ the same with and without the condition. A single
    step has w itself.
    """

    choice_temperature: float = 4.5
    guidance: float = 0.0
    counts: Counts = "expected"

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
        published_BK = published_counts(walk.mask_prob(times), num_B)
        for index, (t, s) in enumerate(pairwise(times)):
            progress = index / (num_steps - 1) if num_steps > 1 else 1.0
            masked_BD = walk.masked(x)
            left_B = masked_BD.sum(1)
            drawn = walk.propose(x, walk.every(t), masked_BD, guidance=self.guidance * progress)
            token_BD, log_p_BD = x.clone(), torch.zeros(x.shape, dtype=torch.float64, device=x.device)
            token_BD[drawn.row_M, drawn.position_M] = drawn.token_M
            log_p_BD[drawn.row_M, drawn.position_M] = drawn.log_p_M
            keep_B = left_B - torch.minimum(remaining(walk, num_B, times[0], s), (left_B - 1).clamp_min(0))
            if self.counts == "published" and index < num_steps - 1:
                keep_B = torch.minimum(published_BK[:, index], left_B)
            noise_BD = self.choice_temperature * (1 - progress) * standard_gumbel(walk.uniform(tuple(x.shape)))
            x = torch.where(surest(log_p_BD + noise_BD, masked_BD, keep_B), token_BD, x)
            yield x


def surest(
    score_BD: Float[Tensor, "B D"], masked_BD: Bool[Tensor, "B D"], count_B: Int64[Tensor, " B"]
) -> Bool[Tensor, "B D"]:
    """The `count_B` masked places of each sequence with the largest score."""
    score_BD = torch.where(masked_BD, score_BD, -torch.inf)
    rank_BD = score_BD.argsort(1, descending=True).argsort(1)
    return masked_BD & (rank_BD < count_B[:, None])


def standard_gumbel(u: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """-log(-log u), of uniforms in [0, 1)."""
    return -(-u.clamp_min(2.0**-53).log()).log()


def published_counts(mask_prob_N: Float[Tensor, " N"], num_B: Int64[Tensor, " B"]) -> Int64[Tensor, "B K"]:
    """The published numbers of tokens of the N - 1 steps between N times at which a share `mask_prob_N` of `num_B` places is masked.

    Differences of the expected numbers, each rounded half to even; 1 in place of 0; and the last makes the sum whole, be it by 0 or less.
    """
    left_BN = (mask_prob_N * num_B[:, None]).round().long()
    count_BK = left_BN[:, :-1] - left_BN[:, 1:]
    count_BK = torch.where(count_BK == 0, 1, count_BK)
    last_B = num_B - count_BK[:, :-1].sum(1)
    return torch.cat([count_BK[:, :-1], last_B[:, None]], 1)
