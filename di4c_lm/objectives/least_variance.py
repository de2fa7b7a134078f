"""Times that lower the variance of a loss: sampled in proportion to the root of its second moment there, and weighed by their density."""

from collections.abc import Callable
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

BINS = 32
_DECAY = 0.99  # of what was seen, an update
_PRIOR = 2.0  # examples of the mean second moment that each bin is taken to have seen besides
_UNIFORM = 0.1  # share of the times that is uniform, so that no weight exceeds its inverse


@final
class LeastVarianceTimes:
    """A histogram of the second moment of f(t), the loss of an example at time t, over equal parts of (low, 1].

    Of the densities q by which E[f(t) / q(t)] estimates the mean of f over uniform t, q(t) ∝ sqrt(E[f² | t]) has the least variance: what
    arXiv 2511.18159 calls P-POTS, which fits a curve to it; here it is piecewise constant, and follows the loss. What the ranks see is
    summed once an update (`adapt`), so that all sample from the same q.
    """

    def __init__(self, low: float) -> None:
        self.low = low
        self.seen_2K = torch.zeros(2, BINS, dtype=torch.float64)  # sums of f², and counts, of earlier updates
        self._new_2K = torch.zeros_like(self.seen_2K)

    @property
    def density(self) -> Float[Tensor, " K"]:
        """q of each part, where a uniform one's is 1."""
        square_K, count_K = self.seen_2K
        mean = square_K.sum() / count_K.sum() if bool(square_K.sum() > 0) else square_K.new_tensor(1.0)
        root_K = ((square_K + _PRIOR * mean) / (count_K + _PRIOR)).sqrt()
        return _UNIFORM + (1 - _UNIFORM) * root_K / root_K.mean()

    def sample(self, u: Float[Tensor, " B"]) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """The times in (low, 1] of uniforms in (0, 1], which rise with them, and their densities."""
        density_K = self.density.to(u.device)
        high_K = density_K.cumsum(0) / BINS
        at_B = torch.searchsorted(high_K, u.contiguous()).clamp(max=BINS - 1)
        inside_B = 1 - (high_K[at_B] - u) * BINS / density_K[at_B]
        t_B = self.low + (1 - self.low) * (at_B + inside_B.clamp(1e-9, 1)) / BINS
        return t_B, density_K[at_B]

    @torch.no_grad()
    def record(self, t: Float[Tensor, " B"], loss: Float[Tensor, " B"]) -> None:
        """Remember the loss of examples until the next `adapt`."""
        at_B = ((t.double() - self.low) / (1 - self.low) * BINS).ceil().long().clamp(1, BINS) - 1
        both_2B = torch.stack([loss.double() ** 2, torch.ones_like(loss, dtype=torch.float64)])
        self._new_2K = self._new_2K.to(loss.device).index_add(1, at_B, both_2B)

    def adapt(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Take in what all ranks remember; an update whose loss was not finite is left out."""
        new_2K = sum_over_ranks(self._new_2K).cpu()
        self._new_2K = torch.zeros_like(self._new_2K)
        if bool(new_2K.isfinite().all()):
            self.seen_2K = _DECAY * self.seen_2K + new_2K

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"seen": self.seen_2K.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        self.seen_2K = torch.tensor(state["seen"], dtype=torch.float64)
