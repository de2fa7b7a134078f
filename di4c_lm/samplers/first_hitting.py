"""The first-hitting sampler: token by token in random order, at the times at which the process would have revealed them."""

from collections.abc import Iterator
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import at_least, section, setting
from di4c_lm.processes.masked import MaskedProcess, Schedule, remaining
from di4c_lm.samplers.trajectory import Trajectory

_HALVINGS = 60


@final
@section
class FirstHitting:
    """One token at a time in random order, at the times when infinitely many ancestral steps would reveal them (Zheng et al. 2024).

    Section 4 there: of n masked positions one chosen at random becomes visible next, where m(t) has fallen by u^(1/n). One token a call
    is the limit of infinitely many ancestral steps, in as many calls as there are tokens, whatever the grid. More tokens a call are its
    parallel form: they are sampled together, at the time of the first. With 0 the grid says how many: after the step to s a share
    m(s)/m(1) of the positions is left.
    """

    needs: ClassVar[type] = MaskedProcess
    tokens_per_call: int = setting(1, "tokens revealed by each network call; 0: as many as the grid says")

    def __post_init__(self) -> None:
        at_least(self, 0, "tokens_per_call")

    def steps(self, trajectory: Trajectory, x: Int64[Tensor, "B D"]) -> Iterator[Int64[Tensor, "B D"]]:
        """One state a call, or with `tokens_per_call` = 0 one an interval."""
        process = trajectory.needs(MaskedProcess)
        masked_BD = process.unknown(x)
        rank_BD = _random_ranks(masked_BD, trajectory.uniform())
        hit_BD = _hitting_levels(process.schedule, masked_BD, trajectory.uniform())
        shown = self._targets(process.schedule, masked_BD.sum(1), trajectory.times)
        done_B = torch.zeros_like(shown[0]) if shown else None
        for index in trajectory.steps(len(shown)):
            assert done_B is not None
            level_B = hit_BD.gather(1, done_B.clamp_max(x.shape[1] - 1)[:, None])[:, 0]
            where_BD = masked_BD & (rank_BD >= done_B[:, None]) & (rank_BD < shown[index][:, None])
            x = trajectory.predict(x, time_of_level(process.schedule, level_B), where_BD)
            done_B = shown[index]
            yield x

    def _targets(self, schedule: Schedule, num_B: Int64[Tensor, " B"], times: Float64[Tensor, " n"]) -> list[Tensor]:
        """How many tokens of each sequence are visible after each call."""
        count = self.tokens_per_call
        if count:
            return [num_B.clamp_max(shown) for shown in range(count, int(num_B.max()) + count, count)]
        return [num_B - remaining(schedule, num_B, times[0], s) for s in times[1:]]


def time_of_level(schedule: Schedule, level_B: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """The t with m(t) = `level_B`, by bisection."""
    low_B, high_B = torch.zeros_like(level_B), torch.ones_like(level_B)
    for _ in range(_HALVINGS):
        middle_B = (low_B + high_B) / 2
        above_B = schedule.mask_prob(middle_B) > level_B
        low_B, high_B = torch.where(above_B, low_B, middle_B), torch.where(above_B, middle_B, high_B)
    return high_B


def _random_ranks(masked_BD: Bool[Tensor, "B D"], u_BD: Float64[Tensor, "B D"]) -> Int64[Tensor, "B D"]:
    """The place of each masked position in a random order of those of its sequence; the others come after."""
    return torch.where(masked_BD, u_BD, 2.0).argsort(1).argsort(1)


def _hitting_levels(
    schedule: Schedule, masked_BD: Bool[Tensor, "B D"], u_BD: Float64[Tensor, "B D"]
) -> Float64[Tensor, "B D"]:
    """m at the k-th hitting time of each sequence, descending: m(1) u_1^(1/n) u_2^(1/(n-1)) ..., the order statistics of n uniforms."""
    k_D = torch.arange(masked_BD.shape[1], device=masked_BD.device)
    left_BD = (masked_BD.sum(1, keepdim=True) - k_D).clamp_min(1)
    one = torch.ones((), dtype=torch.float64, device=masked_BD.device)
    return schedule.mask_prob(one) * ((1 - u_BD).log() / left_BD).cumsum(1).exp()
