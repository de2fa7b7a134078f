"""The sampler of MaskGIT: sample everywhere, keep what the network is surest of."""

from collections.abc import Iterator
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import at_least, section, setting
from di4c_lm.processes.masked import MaskedProcess, remaining
from di4c_lm.samplers.trajectory import Certainty, Trajectory

Counts = Literal["expected", "published"]


@final
@section
class Confidence:
    """MaskGIT's sampler: sample every masked position, keep those of highest confidence (Chang et al. 2022).

    Section 3.2 there, with the annealing of MaskGIT-pytorch (Besnier and Chen 2023). Step i of n samples a token at every masked
    position and keeps those with the largest certainty + `choice_temperature` (1 - i/(n-1)) Gumbel, so many that a share m(s)/m(1)
    stays masked (a cosine grid gives MaskGIT's counts); at least one a step. `counts=published` takes the published numbers of tokens a
    step in place of that share, as `published_counts` says.
    """

    needs: ClassVar[type] = MaskedProcess
    choice_temperature: float = setting(
        4.5, "temperature of the Gumbel noise on the choice of positions, which falls to 0 over the steps"
    )
    by: Certainty = setting(
        "probability",
        "certainty of a token: log p of what was sampled, minus the entropy, or p of the likeliest less p of the second (margin)",
    )
    counts: Counts = setting(
        "expected", "tokens revealed in each step: expected by the masking schedule, or as in the published code"
    )

    def __post_init__(self) -> None:
        at_least(self, 0, "choice_temperature")

    def steps(self, trajectory: Trajectory, x: Int64[Tensor, "B D"]) -> Iterator[Int64[Tensor, "B D"]]:
        """One state an interval."""
        process, times = trajectory.needs(MaskedProcess), trajectory.times
        num_B = process.unknown(x).sum(1)
        published_BK = published_counts(process.schedule.mask_prob(times), num_B)
        for index in trajectory.steps(len(times) - 1):
            masked_BD = process.unknown(x)
            left_B = masked_BD.sum(1)
            token_BD, sure_BD = trajectory.propose(x, trajectory.every(times[index]), masked_BD, by=self.by)
            stay_B = remaining(process.schedule, num_B, times[0], times[index + 1])
            keep_B = left_B - torch.minimum(stay_B, (left_B - 1).clamp_min(0))
            if self.counts == "published" and not trajectory.ends:
                keep_B = torch.minimum(published_BK[:, index], left_B)
            heat = self.choice_temperature * (1 - trajectory.progress)
            score_BD = sure_BD + heat * standard_gumbel(trajectory.uniform())
            x = torch.where(surest(score_BD, masked_BD, keep_B), token_BD, x)
            yield x


def surest(
    score_BD: Float[Tensor, "B D"], masked_BD: Bool[Tensor, "B D"], count_B: Int64[Tensor, " B"]
) -> Bool[Tensor, "B D"]:
    """The `count_B` masked positions of each sequence with the largest score."""
    score_BD = torch.where(masked_BD, score_BD, -torch.inf)
    rank_BD = score_BD.argsort(1, descending=True).argsort(1)
    return masked_BD & (rank_BD < count_B[:, None])


def standard_gumbel(u: Float64[Tensor, "..."]) -> Float64[Tensor, "..."]:
    """-log(-log u), of uniforms in [0, 1)."""
    return -(-u.clamp_min(2.0**-53).log()).log()


def published_counts(mask_prob_N: Float[Tensor, " N"], num_B: Int64[Tensor, " B"]) -> Int64[Tensor, "B K"]:
    """The published numbers of tokens of the N - 1 steps between N times at which a share `mask_prob_N` of `num_B` positions is masked.

    Differences of the expected numbers, each rounded half to even; 1 in place of 0; and the last makes the sum whole, be it by 0 or less.
    """
    left_BN = (mask_prob_N * num_B[:, None]).round().long()
    count_BK = left_BN[:, :-1] - left_BN[:, 1:]
    count_BK = torch.where(count_BK == 0, 1, count_BK)
    last_B = num_B - count_BK[:, :-1].sum(1)
    return torch.cat([count_BK[:, :-1], last_B[:, None]], 1)
