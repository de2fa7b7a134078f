"""Networks whose distribution is known exactly, on a masked process and on a chain of three levels."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from scipy.stats import chisquare
from torch import Tensor

from di4c_lm.processes.denoiser import LinearHead, OutputHead, Prediction
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng, uniform
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.registry import make_sampler
from di4c_lm.samplers.trajectory import Decoding, Sample, Sampler, sample


class Joint:
    """The exact conditionals p(x_d | visible tokens) of a joint distribution `p` over S^D states, MASK = S: the perfect network.

    Of fewer than D positions it takes them for the first. With `lambdas`, λ is one of so many numbers and is ignored; with `timeless`,
    it says as DIT does that it reads no time. A condition (B,) makes the first state likelier. `calls` holds the number of sequences of
    each call, `seen` the λ of each, `times` the t, `conds` the condition.
    """

    def __init__(self, p: Tensor, *, lambdas: int = 0, timeless: bool = False) -> None:
        self.p, self.num_states, self.length = p.double() / p.sum(), p.shape[0], p.dim()
        self.every = torch.cartesian_prod(*[torch.arange(self.num_states)] * self.length).view(-1, self.length)
        self.lambdas = lambdas
        self.config = SimpleNamespace(time_conditioning=not timeless)
        self.calls: list[int] = []
        self.seen: list[Tensor | None] = []
        self.times: list[Tensor] = []
        self.conds: list[Tensor | None] = []

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Any, device: Any) -> Tensor | None:
        return (uniform(rng, (num_batch, num_lambdas, 1), device) * self.lambdas).long() if self.lambdas else None

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Any = None) -> Prediction:
        self.calls.append(len(x_t))
        self.seen.append(lam)
        self.times.append(t)
        self.conds.append(cond)
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


class Even:
    """Each of `num_states` states as likely as the others, at any number of positions."""

    def __init__(self, num_states: int) -> None:
        self.num_states = num_states

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Any, device: Any) -> None:
        return None

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Tensor | None = None) -> Prediction:
        return Prediction(torch.ones(len(x_t), 1, x_t.shape[1], 1), self.output_head())

    def output_head(self) -> LinearHead:
        return LinearHead(torch.ones(self.num_states + 1, 1), impossible=self.num_states)


def product(*marginals: list[float]) -> Tensor:
    """The joint distribution of independent positions."""
    p = torch.ones(())
    for marginal in marginals:
        p = p[..., None] * torch.tensor(marginal)
    return p


# Over 3 positions of 3 states: one with strong correlations and no empty state, and one without any.
CORRELATED = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(4)) ** 4 + 0.01
INDEPENDENT = product([0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05])

LEVELS, CHAIN_POSITIONS = 3, 2
CHAIN = GaussianChain(num_states=LEVELS, rate_sigma=2.0, q_sigma=3.0, time_base=0.1, time_exponential=20.0)
CHAIN_DATA = torch.tensor([[0.30, 0.02, 0.03], [0.05, 0.25, 0.05], [0.0, 0.05, 0.25]], dtype=torch.float64)


@dataclass(frozen=True)
class Given(OutputHead):
    """Features are the logits."""

    num_states: int = LEVELS
    parameters: tuple[Tensor, ...] = ()

    def logits(self, features_NH: Tensor, positions_N: Tensor) -> Tensor:
        return features_NH.clone()

    def vjp(self, features_NH, positions_N, grad_NS, parameter_grads) -> Tensor:
        return grad_NS


class Exact:
    """The true marginals p(x_0^d | x_t) of `CHAIN_DATA` on both positions of `CHAIN`; with λ the exact joint, position by position."""

    def __init__(self, *, mixture: bool = False) -> None:
        self.mixture = mixture
        self.calls = 0

    def joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """p(x_0 | x_t), (B, S, S)."""
        q_BSS = CHAIN.transition(t.double())
        rows = torch.arange(len(x_t))
        weight = CHAIN_DATA * q_BSS[rows, :, x_t[:, 0]][:, :, None] * q_BSS[rows, :, x_t[:, 1]][:, None]
        return weight / weight.sum((1, 2), keepdim=True)

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Tensor | None = None) -> Prediction:
        self.calls += len(x_t)
        joint_BSS = self.joint(x_t, t)
        if lam is None:
            p_BDS = torch.stack([joint_BSS.sum(2), joint_BSS.sum(1)], 1)
        else:  # λ chooses the pair: the component is a point
            pair_B = torch.searchsorted(joint_BSS.flatten(1).cumsum(1), lam[:, 0].double())[:, 0].clamp_max(
                LEVELS**2 - 1
            )
            p_BDS = torch.eye(LEVELS).double()[torch.stack([pair_B // LEVELS, pair_B % LEVELS], 1)]
        return Prediction((p_BDS + 1e-300).log()[:, None], Given())

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Any, device: Any):
        return uniform(rng, (num_batch, num_lambdas, 1), device) if self.mixture else None

    def output_head(self) -> OutputHead:
        return Given()


def masks(count: int, like: Joint | Tensor) -> Tensor:
    """`count` sequences of MASK, of the length and states of a joint distribution."""
    p = like.p if isinstance(like, Joint) else like
    return torch.full((count, p.dim()), p.shape[0])


def run(
    net: Joint | Even,
    x_init: Tensor | int,
    steps: int,
    sampler: str | Sampler = "ancestral",
    options: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    grid: Any = "uniform",
    process: MaskedProcess | None = None,
    teacher: Joint | None = None,
    cond: Tensor | None = None,
    on_step: Callable[[Tensor], None] | None = None,
    **decoding: Any,
) -> Sample:
    """Samples of a masked process, from `x_init` or that many sequences of MASK, keyed from `first` on."""
    if isinstance(x_init, int):
        assert isinstance(net, Joint)
        x_init = masks(x_init, net)
    return sample(
        net,
        process or MaskedProcess(net.num_states),
        x_init,
        make_grid(grid, steps),
        KeyedRng(seed, torch.arange(first, first + len(x_init))),
        sampler=make_sampler(sampler, options) if isinstance(sampler, str) else sampler,
        decoding=Decoding(**decoding),
        teacher=teacher,
        cond=cond,
        on_step=on_step,
    )


def run_chain(
    net: Exact,
    count: int,
    steps: int,
    sampler: str | Sampler = "ancestral",
    options: dict[str, Any] | None = None,
    *,
    seed: int = 7,
    first: int = 0,
    teacher: Exact | None = None,
    on_step: Callable[[Tensor], None] | None = None,
    **decoding: Any,
) -> Sample:
    """`count` pairs of levels, keyed from `first` on."""
    rng = KeyedRng(seed, torch.arange(first, first + count))
    return sample(
        net,
        CHAIN,
        CHAIN.prior(count, CHAIN_POSITIONS, rng, torch.device("cpu")),
        make_grid("uniform", steps, floor=CHAIN.min_time),
        rng,
        sampler=make_sampler(sampler, options) if isinstance(sampler, str) else sampler,
        decoding=Decoding(**decoding),
        teacher=teacher,
        on_step=on_step,
    )


def shares(x: Tensor, num_states: int) -> Tensor:
    """How often each joint state came, (S, ..., S)."""
    place = torch.zeros(len(x), dtype=torch.int64)
    for position in range(x.shape[1]):
        place = place * num_states + x[:, position]
    counts = torch.bincount(place, minlength=num_states ** x.shape[1])
    return counts.double().view([num_states] * x.shape[1]) / len(x)


def p_value(x: Tensor, p: Tensor) -> float:
    """Chi-square of the counts of every joint state."""
    expected = p.double() / p.double().sum() * len(x)
    found = shares(x, p.shape[0]) * len(x)
    return float(chisquare(found.flatten().numpy(), expected.flatten().numpy()).pvalue)


def variation(x: Tensor, p: Tensor) -> float:
    """Total variation between the counts and a joint distribution."""
    return float((shares(x, p.shape[0]) - p.double() / p.double().sum()).abs().sum() / 2)
