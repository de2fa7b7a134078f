"""Networks whose law is known exactly."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.networks.output_head import LinearHead
from di4c_lm.processes.denoiser import Prediction


class Joint:
    """The exact conditionals p(x_d | visible tokens) of a joint law `p` over S^D states, MASK = S: the perfect network.

    Of fewer than D positions it takes them for the first. With `lambdas`, λ is one of so many numbers and is ignored; with `timeless`,
    it says as DIT does that it reads no time. A condition (B,) makes the first state likelier. `calls` holds the number of sequences of
    each call, `seen` the λ of each, `times` the t.
    """

    def __init__(self, p: Tensor, *, lambdas: int = 0, timeless: bool = False) -> None:
        self.p, self.num_states, self.length = p.double() / p.sum(), p.shape[0], p.dim()
        self.every = torch.cartesian_prod(*[torch.arange(self.num_states)] * self.length).view(-1, self.length)
        self.lambdas = lambdas
        self.config = SimpleNamespace(time_conditioning=not timeless)
        self.calls: list[int] = []
        self.seen: list[Tensor | None] = []
        self.times: list[Tensor] = []

    def sample_latents(self, num_batch: int, num_lambdas: int, uniform: Any) -> Tensor | None:
        return (uniform((num_batch, num_lambdas, 1)) * self.lambdas).long() if self.lambdas else None

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Any = None) -> Prediction:
        self.calls.append(len(x_t))
        self.seen.append(lam)
        self.times.append(t)
        every_ED = self.every[:, : x_t.shape[1]]
        fits_BE = ((x_t[:, None] == every_ED) | (x_t[:, None] == self.num_states)).all(2)
        weight_BE = fits_BE * self.p.flatten()
        one_hot_EDS = torch.nn.functional.one_hot(every_ED, self.num_states).double()
        marginal_BDS = torch.einsum("be,eds->bds", weight_BE, one_hot_EDS)
        log_p_BDS = (marginal_BDS / marginal_BDS.sum(2, keepdim=True).clamp_min(1e-300)).clamp_min(1e-300).log()
        if cond is not None:
            log_p_BDS[..., 0] += cond[:, None].double()
        never = torch.full((*x_t.shape, 1), -1e6, dtype=torch.float64)
        return Prediction(torch.cat([log_p_BDS, never], 2).float()[:, None], self.output_head())

    def output_head(self) -> LinearHead:
        return LinearHead(torch.eye(self.num_states + 1))


def product(*marginals: list[float]) -> Tensor:
    """The joint law of independent positions."""
    p = torch.ones(())
    for marginal in marginals:
        p = p[..., None] * torch.tensor(marginal)
    return p


@pytest.fixture(scope="session")
def joint() -> type[Joint]:
    return Joint


@pytest.fixture(scope="session")
def correlated() -> Tensor:
    """A law over 3 positions of 3 states with strong correlations and no empty state."""
    return torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(4)) ** 4 + 0.01


@pytest.fixture(scope="session")
def independent() -> Tensor:
    return product([0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05])
