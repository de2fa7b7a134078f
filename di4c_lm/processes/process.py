"""What objectives and samplers ask of a process: noise forward, and the way back between two times given a prediction of x_0."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.rng import Rng, uniform

StateTensor = Int64[Tensor, "..."]
TimeTensor = Float[Tensor, "..."]
UniformTensor = Float64[Tensor, "..."]
# (x_t, t, needed, rng) to x_t with a sample of x_0 ~ p(x_0 | x_t) where `needed`; of what stands elsewhere no use is made.
Predict = Callable[[Int64[Tensor, "B D"], Float[Tensor, " B"], Bool[Tensor, "B D"], Rng], Int64[Tensor, "B D"]]


@runtime_checkable
class Process(Protocol):
    """A forward process that acts on each position by itself."""

    @property
    def min_time(self) -> float:
        """The lowest time at which networks are asked for x_0: 0, or where a process has no use for less, above."""
        ...

    def prior(self, num_batch: int, num_positions: int, rng: Rng, device: torch.device) -> Int64[Tensor, "B D"]:
        """x_1, where sampling begins."""
        ...

    def corrupt(self, x_0: Int64[Tensor, "B D"], t: Float[Tensor, " B"], rng: Rng) -> Int64[Tensor, "B D"]:
        """x_t ~ q(x_t | x_0)."""
        ...

    def unknown(self, x_t: StateTensor) -> Bool[Tensor, "..."]:
        """Where x_0 is not certain given x_t."""
        ...

    def bridge(self, x_t: StateTensor, x_0: StateTensor, t: TimeTensor, s: TimeTensor, u: UniformTensor) -> StateTensor:
        """x_s ~ q(x_s | x_0, x_t) for s < t, one uniform a position; all of one shape."""
        ...

    def reverse(
        self, x_t: Int64[Tensor, "B D"], predict: Predict, t: Float[Tensor, " B"], s: Float[Tensor, " B"], rng: Rng
    ) -> Int64[Tensor, "B D"]:
        """x_s ~ p(x_s | x_t) = Σ q(x_s | x_0, x_t) p(x_0 | x_t) for s < t: x_0, then x_s from `bridge` (Di4C, section F.1)."""
        x_0 = predict(x_t, t, self.unknown(x_t), rng)
        t_BD, s_BD = (time[:, None].expand_as(x_t) for time in (t, s))
        return self.bridge(x_t, x_0, t_BD, s_BD, uniform(rng, tuple(x_t.shape), x_t.device))
