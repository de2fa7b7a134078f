"""From left to right: each step reveals the first of the positions that are still masked."""

from collections.abc import Iterator
from typing import ClassVar, final

from jaxtyping import Int64
from torch import Tensor

from di4c_lm.core.settings import section
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.first_hitting import remaining
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
        process, times = trajectory.needs(MaskedProcess), trajectory.times
        masked_BD = process.unknown(x)
        num_B, rank_BD = masked_BD.sum(1), masked_BD.cumsum(1)
        for index in trajectory.steps(len(times) - 1):
            shown_B = num_B - remaining(process.schedule, num_B, times[0], times[index + 1])
            where_BD = process.unknown(x) & (rank_BD <= shown_B[:, None])
            x = trajectory.predict(x, trajectory.every(times[index]), where_BD)
            yield x
