"""What an objective asks of a process: noise forward, and the way back between two times given a guess of x_0."""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.rng import Rng


@runtime_checkable
class Process(Protocol):
    """A forward process that acts on each position by itself. Tensors of one call have equal shapes, but where B and D are named."""

    @property
    def min_time(self) -> float:
        """The lowest time at which networks are asked for x_0: 0, or where a process has no use for less, above."""
        ...

    def corrupt(self, x_0: Int64[Tensor, "B D"], t: Float[Tensor, " B"], rng: Rng) -> Int64[Tensor, "B D"]:
        """x_t ~ q(x_t | x_0)."""
        ...

    def is_open(self, x_t: Int64[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Where x_0 is not certain given x_t."""
        ...

    def needs_x0(
        self, x_t: Int64[Tensor, "..."], t: Float[Tensor, "..."], s: Float[Tensor, "..."], u: Float64[Tensor, "..."]
    ) -> Bool[Tensor, "..."]:
        """Where x_s, as `bridge` draws it from the same uniforms `u`, depends on x_0."""
        ...

    def bridge(
        self,
        x_t: Int64[Tensor, "..."],
        x_0: Int64[Tensor, "..."],
        t: Float[Tensor, "..."],
        s: Float[Tensor, "..."],
        u: Float64[Tensor, "..."],
    ) -> Int64[Tensor, "..."]:
        """x_s ~ q(x_s | x_0, x_t) for s < t, one uniform a draw. Given x_0 drawn from p(x_0 | x_t), it is drawn from p(x_s | x_t)."""
        ...
