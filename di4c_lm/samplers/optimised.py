"""A time grid optimised on the model: where a step may be long, and where it costs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import Denoiser, Prediction
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import Rng, uniform
from di4c_lm.samplers.draw import Draw
from di4c_lm.samplers.grids import check_grid, make_grid, uniform_grid
from di4c_lm.samplers.walk import ROWS

MEASURED = ("optimised", "fewest")
_NODES = 32


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
        if not 1 <= steps < num_nodes:
            raise ValueError(f"steps must be in [1, {num_nodes - 1}] for {num_nodes} nodes, got {steps}")
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
    draw: Draw | None = None,
) -> IntervalErrors:
    """Estimate what a step of any length costs, on B trajectories of the model itself over `nodes` equal small steps.

    A token that becomes visible between nodes k and k + 1 is drawn from p_k = p(. | x_k). Had the step begun at an earlier node i, it would
    have been drawn from p_i, blind to the tokens revealed in between. The error of the step from i to j is the expected sum of
    log p_k(x) - log p_i(x) over the tokens x that are revealed at k in [i, j), where x ~ p_k: an unbiased one-sample estimate of
    E sum_k KL(p_k || p_i), the bound on the KL of the compounded error of Park et al. 2024 ("Jump Your Steps", Theorem 3.1), for tokens as
    they are revealed. λ is drawn once a sequence and held, so that what is compared is p(. | x_k; λ). A running maximum over j
    removes decreases, which are noise. Costs `nodes` calls and up to `nodes` output_heads a position. Raises `ValueError` for `nodes` < 1.
    """
    draw = draw or Draw()
    grid_K = uniform_grid(nodes).to(x_init.device)
    num_batch, length = x_init.shape
    lam = denoiser.sample_latents(num_batch, 1, lambda shape: uniform(rng, shape, x_init.device))
    x, seen = x_init, []
    gain_KK = torch.zeros(nodes + 1, nodes + 1, dtype=torch.float64, device=x.device)
    for k, (t, s) in enumerate(pairwise(grid_K)):
        where_BD = process.revealed(x, t, s, uniform(rng, (num_batch, length), x.device))
        u_BD = uniform(rng, (num_batch, length), x.device)
        seen.append(denoiser(x, t.float().expand(num_batch), lam))
        x = x.clone()
        for row_C, position_C in zip(*(part.split(ROWS) for part in where_BD.nonzero(as_tuple=True)), strict=True):
            p_CS = draw.weights(_logits(seen[k], row_C, position_C))
            token_C = sample_categorical(p_CS, u_BD[row_C, position_C])
            x[row_C, position_C] = token_C
            score_k = _log_share(p_CS, token_C)
            for i in range(k):
                earlier = draw.weights(_logits(seen[i], row_C, position_C))
                gain_KK[i, k + 1] += (score_k - _log_share(earlier, token_C)).sum()
    error_KK = (gain_KK.cumsum(1) / num_batch).cummax(1).values.clamp_min(0)
    return IntervalErrors(grid_K.cpu(), error_KK.cpu())


def grid_for(
    denoiser: Denoiser,
    process: MaskedProcess,
    x_init: Int64[Tensor, "B D"],
    grid: str | Sequence[float],
    steps: int,
    rng: Rng,
    *,
    draw: Draw | None = None,
) -> Float64[Tensor, " n"]:
    """A grid as settings name it: by `make_grid`, or measured on trajectories from `x_init`.

    `optimised` is the best of `steps` steps, `fewest` the shortest whose estimated error is not above that of `steps` equal ones.
    """
    if grid not in MEASURED:
        return make_grid(grid, steps, others=MEASURED)
    equal = uniform_grid(steps)
    exact = dataclasses.replace(draw or Draw(), noise="exact")
    errors = measure_errors(denoiser, process, x_init, rng, nodes=max(_NODES, 2 * steps), draw=exact)
    return errors.best(steps) if grid == MEASURED[0] else errors.fewest(equal)


def _logits(prediction: Prediction, row_C: Tensor, position_C: Tensor) -> Tensor:
    return prediction.output_head.logits(prediction.features[row_C, 0, position_C], position_C)


def _log_share(p_CS: Tensor, token_C: Tensor) -> Tensor:
    """Log-probability of a token, at least that of one in 1e30, as a nucleus may leave a token out."""
    share_C = p_CS.gather(1, token_C[:, None])[:, 0].double() / p_CS.sum(1, dtype=torch.float64)
    return share_C.clamp_min(1e-30).log()
