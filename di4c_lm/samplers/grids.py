"""Time grids of samplers: descending from 1 to 0, given by a formula or optimised on the model.

`floor` is the lowest time at which a process asks for x_0: where it is above 0, the last interval is that from there to 0.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import check
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Denoiser, Prediction
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import Rng, uniform
from di4c_lm.samplers.trajectory import Decoding, check_grid, log_share

MEASURED = ("optimised", "fewest")
_PUBLISHED_END = 1e-5
_NODES = 32
_ROWS = 256  # of probabilities held at once
_LEAST = math.log(1e-30)  # that a token's log-probability counts as: a nucleus may leave it out


def uniform_grid(steps: int, floor: float = 0.0) -> Float64[Tensor, " n"]:
    """1, (n-1)/n, ..., 0: `steps` + 1 times. Above a floor: `steps` times, equally spaced down to it, then 0."""
    _check_steps(steps)
    if floor == 0:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return torch.cat([torch.linspace(1, floor, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


def cosine_grid(steps: int, floor: float = 0.0) -> Float64[Tensor, " n"]:
    """cos(π i / 2n): slow at first, few tokens at a time, and fast at the end (Chang et al. 2022); above a floor, squeezed."""
    _check_steps(steps)
    times = torch.cos(torch.arange(steps + 1, dtype=torch.float64) * (math.pi / 2 / steps))
    times = floor + (1 - floor) * times
    times[-1] = 0
    return times


def published_grid(steps: int, floor: float = 0.0) -> Float64[Tensor, " n"]:
    """The published loops. Text: `steps` equal intervals from 1 to 1e-5, then one to 0 for the few tokens left. tauLDR: `uniform_grid`."""
    return uniform_grid(steps, floor) if floor else uniform_grid(steps + 1, _PUBLISHED_END)


GRIDS: dict[str, Callable[[int, float], Tensor]] = {
    "uniform": uniform_grid,
    "cosine": cosine_grid,
    "published": published_grid,
}


def make_grid(
    grid: str | Sequence[float], steps: int, *, floor: float = 0.0, others: Sequence[str] = ()
) -> Float64[Tensor, " n"]:
    """A grid by name with `steps` steps, or the listed times, whose number then is one more than the steps.

    Raises `ValueError` for an unknown name, `steps` < 1, or a list that does not descend from 1 to 0. A grid optimised on a model comes
    from `grid_for`, which accepts the names `others` too.
    """
    if not isinstance(grid, str):
        times = torch.tensor(list(grid), dtype=torch.float64)
        check_grid(times)
        return times
    check(grid in GRIDS, "grid", grid, f"one of {', '.join([*GRIDS, *others])} or a list of times")
    return GRIDS[grid](steps, floor)


def _check_steps(steps: int) -> None:
    check(steps >= 1, "steps", steps, "at least 1")


@dataclass(frozen=True)
class IntervalErrors:
    """`error_KK`[i, j]: the estimated error, in nats a sequence, of one step from `times_K`[i] to `times_K`[j], for i < j."""

    times_K: Float64[Tensor, " K"]
    error_KK: Float64[Tensor, "K K"]

    def best(self, steps: int) -> Float64[Tensor, " n"]:
        """The grid of `steps` intervals with the least total error (dynamic programme over the nodes).

        Raises `ValueError` unless 1 <= `steps` < K.
        """
        num_nodes = len(self.times_K)
        check(1 <= steps < num_nodes, "steps", steps, f"in [1, {num_nodes - 1}] for {num_nodes} nodes")
        forbidden_KK = torch.ones_like(self.error_KK).tril().bool()
        cost_KK = torch.where(forbidden_KK, torch.inf, self.error_KK)
        total_K, parents = cost_KK[0], []
        for _ in range(steps - 1):
            total_K, parent_K = (total_K[:, None] + cost_KK).min(0)
            parents.append(parent_K)
        path = [num_nodes - 1]
        for parent_K in reversed(parents):
            path.append(int(parent_K[path[-1]]))
        return self.times_K[torch.tensor([0, *reversed(path)])]

    def fewest(self, as_good_as: Float64[Tensor, " n"]) -> Float64[Tensor, " k"]:
        """The grid of the fewest steps whose total error is not above that of the grid `as_good_as`."""
        allowed = self.total(as_good_as)
        for steps in range(1, len(self.times_K)):
            grid = self.best(steps)
            if self.total(grid) <= allowed + 1e-12:
                return grid
        return self.times_K

    def total(self, times: Float64[Tensor, " n"]) -> float:
        """The sum of the errors of the intervals of a grid; a time between nodes counts as the nearest one."""
        check_grid(times)
        nearest = [int((self.times_K - float(time)).abs().argmin()) for time in times]
        return float(sum(self.error_KK[i, j] for i, j in pairwise(nearest) if i < j))


@torch.no_grad()
def measure_errors(
    denoiser: Denoiser,
    process: MaskedProcess,
    x_init: Int64[Tensor, "B D"],
    rng: Rng,
    *,
    nodes: int = _NODES,
    decoding: Decoding | None = None,
) -> IntervalErrors:
    """Estimate what a step of any length costs, on B trajectories of the model itself over `nodes` equal small steps.

    A token that becomes visible between nodes k and k + 1 is sampled from p_k = p(. | x_k). Had the step begun at an earlier node i, it
    would have been sampled from p_i, blind to the tokens revealed in between. The error of the step from i to j is the expected sum of
    log p_k(x) - log p_i(x) over the tokens x that are revealed at k in [i, j), where x ~ p_k: an unbiased one-sample estimate of
    E sum_k KL(p_k || p_i), the bound on the KL of the compounded error of Park et al. 2024 ("Jump Your Steps", Theorem 3.1), for tokens as
    they are revealed. λ is sampled once a sequence and held, so that what is compared is p(. | x_k; λ). A running maximum over j
    removes decreases, which are noise. Costs `nodes` calls and up to `nodes` output heads a position. Raises `ValueError` for `nodes` < 1.
    """
    decoding = decoding or Decoding()
    grid_K = uniform_grid(nodes).to(x_init.device)
    num_batch = len(x_init)
    lam = denoiser.sample_latents(num_batch, 1, rng, x_init.device)
    seen: list[Prediction] = []
    gain_KK = torch.zeros(nodes + 1, nodes + 1, dtype=torch.float64, device=x_init.device)

    def predict(x_t: Tensor, t_B: Tensor, needed_BD: Tensor, rng: Rng) -> Tensor:
        """x_0 where needed, from the prediction at this node, and what it gains on those at earlier nodes."""
        u_BD, x_0, k = uniform(rng, tuple(x_t.shape), x_t.device), x_t.clone(), len(seen)
        seen.append(denoiser(x_t, t_B.float(), lam))
        for at_C in zip(*(index_M.split(_ROWS) for index_M in needed_BD.nonzero(as_tuple=True)), strict=True):
            p_CS, *earlier = (decoding.weights(one.logits(*at_C)) for one in reversed(seen))
            token_C = sample_categorical(p_CS, u_BD[at_C])
            x_0[at_C] = token_C
            score_C = log_share(p_CS, token_C).clamp_min(_LEAST)
            for i, before_CS in enumerate(reversed(earlier)):
                gain_KK[i, k + 1] += (score_C - log_share(before_CS, token_C).clamp_min(_LEAST)).sum()
        return x_0

    x = x_init
    for t, s in pairwise(grid_K):
        x = process.reverse(x, predict, t.expand(num_batch), s.expand(num_batch), rng)
    error_KK = (gain_KK.cumsum(1) / num_batch).cummax(1).values.clamp_min(0)
    return IntervalErrors(grid_K.cpu(), error_KK.cpu())


def grid_for(
    denoiser: Denoiser,
    process: Process,
    x_init: Int64[Tensor, "B D"],
    grid: str | Sequence[float],
    steps: int,
    rng: Rng,
    *,
    decoding: Decoding | None = None,
) -> Float64[Tensor, " n"]:
    """A grid as settings name it: by `make_grid`, or measured on trajectories from `x_init`.

    `optimised` is the best of `steps` steps, `fewest` the shortest whose estimated error is not above that of `steps` equal ones. Raises
    `ValueError` as `make_grid` does, and for a measured grid of another process than a masked one.
    """
    if grid not in MEASURED:
        return make_grid(grid, steps, floor=process.min_time, others=MEASURED)
    if not isinstance(process, MaskedProcess):
        raise ValueError(f"grid must be one of {', '.join(GRIDS)} but for a masked process, got {grid!r}")
    exact = dataclasses.replace(decoding or Decoding(), noise="exact")
    errors = measure_errors(denoiser, process, x_init, rng, nodes=max(_NODES, 2 * steps), decoding=exact)
    return errors.best(steps) if grid == MEASURED[0] else errors.fewest(uniform_grid(steps))
