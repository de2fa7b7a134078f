"""From left to right: each step reveals the first of the positions that are still masked."""

from collections.abc import Iterator
from typing import ClassVar, final

from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import section
from di4c_lm.processes.masked import MaskedProcess, Schedule, remaining
from di4c_lm.samplers.trajectory import Trajectory


@final
@section
class LeftToRight:
    """Each step reveals the first of the positions that are still masked, as many as the grid says, and samples them together.

    After the step to s a share m(s)/m(1) of the positions is left, rounded down. One position a step is the chain rule from left to right
    under the network's conditionals, which an exact network has whatever the order (Uria et al. 2014, section 4). What is revealed
    together is adjacent: a product of marginals loses more by that than in random order, a head that samples them jointly loses nothing,
    and is given text without gaps to the left.
    """

    needs: ClassVar[type] = MaskedProcess

    def steps(self, trajectory: Trajectory, x: Int64[Tensor, "B D"]) -> Iterator[Int64[Tensor, "B D"]]:
        """One state an interval."""
        process = trajectory.needs(MaskedProcess)
        masked_BD = process.unknown(x)
        for t, s in trajectory.intervals():
            x = trajectory.predict(x, trajectory.every(t), span(process.schedule, masked_BD, trajectory.times[0], t, s))
            yield x


def span(
    schedule: Schedule,
    masked_BD: Bool[Tensor, "B D"],
    start: Float64[Tensor, "..."],
    t: Float64[Tensor, "..."],
    s: Float64[Tensor, "..."],
) -> Bool[Tensor, "B D"]:
    """Which of the positions that are masked at `start` the step from t to s reveals; times of all sequences, or one each."""
    num_B, rank_BD = masked_BD.sum(1), masked_BD.cumsum(1)
    before_B, after_B = (num_B - remaining(schedule, num_B, start, time) for time in (t, s))
    return masked_BD & (rank_BD > before_B[:, None]) & (rank_BD <= after_B[:, None])
