"""Sampling of continuous-time chains on ordered levels: steps down a time grid, and one last prediction of x_0."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Denoiser
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.poisson import sample_poisson
from di4c_lm.processes.rng import Rng, uniform
from di4c_lm.samplers.calls import Calls
from di4c_lm.samplers.trajectory import Sample

_ROWS = 2**14  # read out at once


@dataclass(frozen=True, kw_only=True)
class ChainWalk:
    """One trajectory of B sequences: the network's calls, the chain, and chance."""

    calls: Calls
    chain: GaussianChain
    rng: Rng

    def law(self, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""]) -> Float[Tensor, "B D S"]:
        """p(x_0 | x_t; λ) at every position, by one call a sequence with a λ of its own."""
        logits = self._reader(x, t)
        rows = [logits(row_N).softmax(1) for row_N in self._places(x).split(_ROWS)]
        return torch.cat(rows).view(*x.shape, -1)

    def draw(self, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], *, greedy: bool = False) -> Int64[Tensor, "B D"]:
        """x_0 from that law, each position by itself; `greedy` takes the likeliest levels."""
        logits = self._reader(x, t)
        u_N = self.uniform(x, 1).flatten()
        drawn = []
        for row_N in self._places(x).split(_ROWS):
            p_NS = logits(row_N).softmax(1)
            drawn.append(p_NS.argmax(1) if greedy else sample_categorical(p_NS, u_N[row_N]))
        return torch.cat(drawn).view_as(x)

    def uniform(self, x: Int64[Tensor, "B D"], count: int) -> Float64[Tensor, "B D K"]:
        """`count` uniforms a position."""
        return uniform(self.rng, (*x.shape, count), x.device)

    def _reader(
        self, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""]
    ) -> Callable[[Int64[Tensor, " N"]], Float[Tensor, "N S"]]:
        num_positions = x.shape[1]
        lam = self.calls.latents(len(x), self.rng, x.device)
        call = self.calls(x, t.expand(len(x)), lam, torch.arange(len(x), device=x.device))
        return lambda place_N: call.logits(place_N // num_positions, place_N % num_positions)

    @staticmethod
    def _places(x: Int64[Tensor, "B D"]) -> Int64[Tensor, " N"]:
        return torch.arange(x.numel(), device=x.device)


@runtime_checkable
class ChainStep(Protocol):
    """One way from x_t to x_s: a frozen dataclass of its settings."""

    def __call__(
        self, walk: ChainWalk, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """x_s for s < t."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Analytic(ChainStep):
    """The exact p(x_s | x_t) given a prediction of x_0: x_0 is drawn from it, then x_s from the bridge (Di4C, section F.1)."""

    def __call__(
        self, walk: ChainWalk, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """One call."""
        x_0 = walk.draw(x, t)
        return walk.chain.bridge(x, x_0, t.expand_as(x), s.expand_as(x), walk.uniform(x, 1)[..., 0])


@final
@dataclass(frozen=True, kw_only=True)
class TauLeaping(ChainStep):
    """Jumps at the rates of time t all the way to s, added up, and kept within the levels (Campbell et al. 2022, section 4.3)."""

    def __call__(
        self, walk: ChainWalk, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """One call."""
        return _leap(walk, x, walk.chain.reverse_rates(x.flatten(), walk.law(x, t).flatten(0, 1), t), t - s)


@final
@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(ChainStep):
    """After each step of `predictor`, `corrections` leaps at the rates forward and backward of time s (Campbell et al. 2022, section 4.4).

    Together these rates leave the law at s as it is. A leap lasts `size` (t - s); steps that end above `below` are not corrected.
    """

    predictor: Analytic | TauLeaping = field(default_factory=Analytic)
    corrections: int = 1
    size: float = 1.0
    below: float = 1.0

    def __post_init__(self) -> None:
        if self.corrections < 0:
            raise ValueError(f"corrections must be at least 0, got {self.corrections}")
        if not self.size > 0:
            raise ValueError(f"size must be above 0, got {self.size}")
        if not 0 <= self.below <= 1:
            raise ValueError(f"below must be in [0, 1], got {self.below}")

    def __call__(
        self, walk: ChainWalk, x: Int64[Tensor, "B D"], t: Float64[Tensor, ""], s: Float64[Tensor, ""]
    ) -> Int64[Tensor, "B D"]:
        """One call of the predictor, and one a correction."""
        x = self.predictor(walk, x, t, s)
        if s > self.below:
            return x
        for _ in range(self.corrections):
            x_N = x.flatten()
            rates_NS = walk.chain.reverse_rates(x_N, walk.law(x, s).flatten(0, 1), s)
            x = _leap(walk, x, rates_NS + walk.chain.forward_rates(x_N, s), self.size * (t - s))
        return x


def _leap(
    walk: ChainWalk, x: Int64[Tensor, "B D"], rates_NS: Float64[Tensor, "N S"], span: Float64[Tensor, ""]
) -> Int64[Tensor, "B D"]:
    jumps_NS = sample_poisson(rates_NS * span, walk.uniform(x, walk.chain.num_states).flatten(0, 1))
    state_S = torch.arange(walk.chain.num_states, device=x.device)
    moved_N = (jumps_NS * (state_S - x.flatten()[:, None])).sum(1)
    return (x + moved_N.view_as(x)).clamp(0, walk.chain.num_states - 1)


def chain_grid(steps: int, chain: GaussianChain) -> Float64[Tensor, " n"]:
    """n equally spaced times from 1 to the chain's lowest, at each of which the network is called; of one, 1 alone.

    Raises `ValueError` for fewer than 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return torch.linspace(1, chain.min_time, steps, dtype=torch.float64)


@torch.no_grad()
def sample_chain(
    denoiser: Denoiser,
    chain: GaussianChain,
    shape: tuple[int, int],
    times: Float64[Tensor, " n"],
    rng: Rng,
    *,
    step: ChainStep | None = None,
    end: Literal["argmax", "draw"] = "argmax",
    teacher: Denoiser | None = None,
    last: int = 0,
    hold_latents: bool = False,
    device: torch.device | str = "cpu",
    on_step: Callable[[Int64[Tensor, "B D"]], None] | None = None,
) -> Sample:
    """Sequences of `shape` (B, D): x_1 from the chain's stationary law, a `step` between each two of `times`, then x_0 at the last.

    `end`: the last prediction's likeliest levels (published), or a draw. The hybrid of n + k calls: `teacher` makes the `last` k
    predictions (Di4C, section 5.1). λ is drawn a sequence and call, or with `hold_latents` once. With a `KeyedRng` a sequence does not
    depend on its batch. Raises `ValueError` for times that do not descend within (0, 1], and for a `last` without teacher or beyond n.
    """
    if len(times) == 0 or not bool((times.diff() < 0).all()) or not 0 < float(times[-1]) <= float(times[0]) <= 1:
        raise ValueError(f"times must descend within (0, 1], got {times.tolist()}")
    if not 0 <= last <= len(times) or (last > 0 and teacher is None):
        raise ValueError(
            f"last={last} is impossible: allowed is 0, or with a teacher up to the number of times, {len(times)}"
        )
    step = step or Analytic()
    own = Calls(denoiser, hold_latents=hold_latents)
    other = own if teacher is None else Calls(teacher, hold_latents=hold_latents)
    by_turn = [
        ChainWalk(calls=other if k >= len(times) - last else own, chain=chain, rng=rng) for k in range(len(times))
    ]
    x = chain.prior(*shape, rng, torch.device(device))
    for walk, (t, s) in zip(by_turn, pairwise(times.to(device)), strict=False):
        x = step(walk, x, t, s)
        if on_step is not None:
            on_step(x)
    x = by_turn[-1].draw(x, times[-1].to(device), greedy=end == "argmax")
    made = own.made + (0 if other is own else other.made)
    return Sample(x, made / len(x))
