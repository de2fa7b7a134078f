"""Predictor and corrector: after each reverse step, steps back and forth at the same noise level."""

from collections.abc import Iterator
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import at_least, choice, positive, section, setting, unit
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.ancestral import Analytic, Ancestral
from di4c_lm.samplers.tau_leaping import TauLeaping, leap
from di4c_lm.samplers.trajectory import Trajectory

PREDICTORS: dict[str, Any] = {"ancestral": Ancestral, "analytic": Analytic, "tau_leaping": TauLeaping}


@final
@section
class PredictorCorrector:
    """Reverse steps, each followed by corrections that would leave an exact model's distribution as it is (Campbell et al. 2022).

    Section 4.4 there. Of a masked process (Gat et al. 2024, section 3.3): noise goes forward from s to r = s + `size` (t - s), at most
    1, where each visible token is masked with probability 1 - (1 - m(r)) / (1 - m(s)), and an exact reverse step leads back to s. Of a
    chain on levels: a leap for `size` (t - s) at the sum of the rates forward and backward of time s, s above 0. One call a correction;
    given tokens stay.
    """

    needs: ClassVar[tuple[type, ...]] = (MaskedProcess, GaussianChain)
    predictor: Any = choice(PREDICTORS, Ancestral(), "sampler that makes the reverse steps")
    corrections: int = setting(1, "corrections after each step")
    size: float = setting(1.0, "size of a correction, in units of the step")
    below: float = setting(1.0, "only steps that end at or below this time are corrected")

    def __post_init__(self) -> None:
        at_least(self, 0, "corrections")
        positive(self, "size")
        unit(self, "below")

    def steps(self, trajectory: Trajectory, x: Int64[Tensor, "B D"]) -> Iterator[Int64[Tensor, "B D"]]:
        """One state a reverse step and one a correction."""
        masked = isinstance(trajectory.process, MaskedProcess)
        correct = back_and_forth if masked else leap_in_place
        for t, s in trajectory.intervals():
            x = self.predictor.step(trajectory, x, t, s)
            yield x
            if s <= self.below and (masked or s > 0):
                for _ in range(self.corrections):
                    x = correct(trajectory, x, s, self.size * (t - s))
                    yield x


def back_and_forth(
    trajectory: Trajectory, x: Int64[Tensor, "B D"], s: Float64[Tensor, ""], span: Float64[Tensor, ""]
) -> Int64[Tensor, "B D"]:
    """Forward from s for `span`, and an exact reverse step back."""
    process, r = trajectory.needs(MaskedProcess), (s + span).clamp_max(1)
    keep = (1 - process.schedule.mask_prob(r)) / (1 - process.schedule.mask_prob(s))
    hidden_BD = ~trajectory.fixed_BD & (trajectory.uniform() >= keep)
    return Ancestral().step(trajectory, torch.where(hidden_BD, process.mask_id, x), r, s)


def leap_in_place(
    trajectory: Trajectory, x: Int64[Tensor, "B D"], s: Float64[Tensor, ""], span: Float64[Tensor, ""]
) -> Int64[Tensor, "B D"]:
    """A leap at the rates forward and backward of s, for `span`."""
    chain, x_N = trajectory.needs(GaussianChain), x.flatten()
    rates_NS = chain.reverse_rates(x_N, trajectory.distribution(x, s).flatten(0, 1), s)
    return leap(trajectory, x, rates_NS + chain.forward_rates(x_N, s), span)
