"""Student first, teacher last."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import final

from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.samplers.analytic import Analytic
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.corrector import PredictorCorrector
from di4c_lm.samplers.remasking import ReMDM
from di4c_lm.samplers.walk import Walk


@final
@dataclass(frozen=True, kw_only=True)
class Hybrid:
    """The student takes the first n - k steps of a grid of n, the teacher the last k = `last` (Di4C, section 5.1: 7 + 3 calls).

    The correlations that the student adds matter most while much is masked. `inner` is how both step.
    """

    last: int = 1
    inner: Ancestral | Analytic | ReMDM | PredictorCorrector = field(default_factory=Ancestral)

    def __post_init__(self) -> None:
        if self.last < 0:
            raise ValueError(f"last must be at least 0, got {self.last}")

    def steps(
        self, walk: Walk, x: Int64[Tensor, "B D"], times: Float64[Tensor, " n"]
    ) -> Iterator[Int64[Tensor, "B D"]]:
        """Those of `inner`. Raises `ValueError` where there is no teacher, or the grid has fewer than `last` steps."""
        if walk.teacher is None:
            raise ValueError("sampler=hybrid needs a teacher, and none was given")
        if self.last > len(times) - 1:
            raise ValueError(f"last must be at most the number of steps, {len(times) - 1}, got {self.last}")
        turn = len(times) - 1 - self.last
        upper = times[: turn + 1]
        for state in self.inner.steps(walk, x, upper):
            x = state
            yield x
        yield from self.inner.steps(dataclasses.replace(walk, calls=walk.teacher), x, times[turn:])
