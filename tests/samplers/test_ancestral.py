"""Ancestral sampling: exact on both processes, rare tokens at their rates; and the published step, its rates and its table."""

import math
from typing import Any

import pytest
import torch
from scipy.stats import binomtest, chisquare
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical_fp32
from di4c_lm.processes.denoiser import LinearHead, Prediction
from di4c_lm.processes.masked import LogLinear, MaskedProcess
from di4c_lm.processes.rng import KeyedRng, uniform
from di4c_lm.samplers.ancestral import posterior_weights, single_precision_uniform
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.trajectory import sample
from tests.samplers.helpers import (
    CHAIN,
    CHAIN_POSITIONS,
    CORRELATED,
    LEVELS,
    Exact,
    Joint,
    p_value,
    run,
    run_chain,
    shares,
)

COUNT = 40_000
STEPS = (4, 16, 64, 256, 1024)
# How often a token of probability p is sampled relative to exact sampling, in the first of so many steps.
PUBLISHED = {
    1e-3: (1.00, 1.00, 1.00, 0.99, 0.97),
    1e-4: (1.00, 1.00, 0.98, 0.93, 0.73),
    1e-5: (0.99, 0.96, 0.83, 0.43, 0.01),
    1e-6: (0.91, 0.62, 0.09, 0.00, 0.00),
    1e-7: (0.36, 0.00, 0.00, 0.00, 0.00),
}
GRID = 2.0**-24  # of float32 uniforms


class Components:
    """Every position has the one distribution that λ picks among the rows of `p`."""

    def __init__(self, p: Tensor) -> None:
        self.log_p = torch.cat([p.log(), torch.full((*p.shape[:-1], 1), -1e6)], -1)

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Any, device: Any) -> Tensor:
        return (uniform(rng, (num_batch, num_lambdas, 1), device) * len(self.log_p)).long()

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Tensor | None = None) -> Prediction:
        assert lam is not None
        features = self.log_p[lam[:, 0, 0]][:, None, None].expand(-1, 1, x_t.shape[1], -1)
        return Prediction(features.float(), self.output_head())

    def output_head(self) -> LinearHead:
        return LinearHead(torch.eye(self.log_p.shape[-1]))


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_every_step_count_samples_the_distribution(steps: int) -> None:
    p = torch.tensor([0.7, 0.2, 0.0999, 0.0001], dtype=torch.float64)
    x = run(Joint(p), torch.full((100_000, 1), 4), steps).x
    assert chisquare(torch.bincount(x[:, 0], minlength=4).numpy(), (p * 100_000).numpy()).pvalue > 1e-4


def test_many_steps_come_near_the_joint_distribution() -> None:
    assert p_value(run(Joint(CORRELATED), 3000, 60).x, CORRELATED) > 1e-4


def test_one_call_of_a_mixture_correlates_and_a_product_does_not() -> None:
    """Two bits that are always equal (Di4C, section 2): a mixture of two components samples them in one step."""
    certain, x_init = torch.tensor([[1.0, 1e-30], [1e-30, 1.0]], dtype=torch.float64), torch.full((4000, 2), 2)
    grid, rng = make_grid("uniform", 1), KeyedRng(0, torch.arange(4000))
    mixture = sample(Components(certain), MaskedProcess(2), x_init, grid, rng).x
    product = sample(Components(certain.mean(0, keepdim=True)), MaskedProcess(2), x_init, grid, rng).x
    assert bool((mixture[:, 0] == mixture[:, 1]).all())
    assert abs(float((product[:, 0] == product[:, 1]).double().mean()) - 0.5) < 0.04
    assert abs(float(mixture.double().mean()) - 0.5) < 0.04


def test_calls_are_counted_as_they_were_made() -> None:
    net = Joint(torch.ones(3, 3))
    found = run(net, 50, 64)
    assert found.nfe == sum(net.calls) / 50
    assert 1 <= found.nfe <= 2, "two positions are revealed in at most two steps; the others make no call"
    net = Joint(torch.ones(3, 3))
    assert run(net, torch.zeros(4, 2, dtype=torch.long), 8).nfe == 0 and not net.calls


def chain_distribution(steps: int, *, mixture: bool) -> Tensor:
    """That of pairs of levels after an exact reverse step each, by products of S² x S² matrices."""
    times = make_grid("uniform", steps, floor=CHAIN.min_time)[:-1]
    pairs = torch.cartesian_prod(torch.arange(LEVELS), torch.arange(LEVELS))
    pi = CHAIN.stationary()
    p_P = (pi[:, None] * pi).flatten()
    net = Exact()
    for index, t in enumerate(times):
        joint = net.joint(pairs, t.expand(len(pairs)))
        if not mixture:
            joint = joint.sum(2)[:, :, None] * joint.sum(1)[:, None]
        joint_PQ = joint.flatten(1)
        if index + 1 < len(times):
            bridges = []
            for d in range(CHAIN_POSITIONS):
                points = torch.eye(LEVELS).double()
                from_pairs = [
                    CHAIN.posterior(pairs[:, d], points[v].expand(len(pairs), -1), t, times[index + 1])
                    for v in range(LEVELS)
                ]
                bridges.append(torch.stack(from_pairs, 1))  # pair, x_0, x_s
            joint_PQ = torch.einsum("pvw,pva,pwb->pab", joint, *bridges).flatten(1)
        p_P = p_P @ joint_PQ
    return p_P.view(LEVELS, LEVELS)


def close(found: Tensor, p: Tensor) -> bool:
    """Each cell within five standard deviations."""
    return bool(((found - p).abs() <= 5 * (p * (1 - p) / COUNT).sqrt() + 1e-9).all())


@pytest.mark.parametrize("mixture", [False, True], ids=["product", "mixture"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("name", ["ancestral", "analytic"])
def test_steps_down_a_chain_have_the_exact_distribution(name: str, steps: int, mixture: bool) -> None:  # noqa: FBT001
    p = chain_distribution(steps, mixture=mixture)
    assert close(shares(run_chain(Exact(mixture=mixture), COUNT, steps, name).x, LEVELS), p)
    assert steps == 4 or not close(shares(run_chain(Exact(mixture=not mixture), COUNT, steps, name).x, LEVELS), p)


# --- rare tokens: true for exact samples at any number of steps, cut off by the published float32 noise


def odds_of(p: float, steps: int) -> float:
    """Of the token against MASK, in the first step from t = 1: the two that compete in the table."""
    one = torch.ones((), dtype=torch.float64)
    log_p = torch.tensor([[math.log(p), -1e6]], dtype=torch.float64)
    q_S = posterior_weights(log_p, MaskedProcess(1, LogLinear(eps=0.0)), one, one - 1 / steps)[0]
    return float(q_S[0] / q_S[1])


@pytest.mark.parametrize("p", PUBLISHED)
def test_float32_noise_reproduces_the_published_table(p: float) -> None:
    """Of the token's 2^24 uniforms only the largest can win. Those are sampled alone, as all of them would take 10^10.

    The wins are tested exactly against the rate summed over the same uniforms, and that rate against the table.
    """
    for steps, table in zip(STEPS, PUBLISHED[p], strict=True):
        odds = odds_of(p, steps)
        num_top = min(2**24, math.ceil(40 * odds / GRID) + 1)
        noise_T = -torch.log1p(-(torch.arange(num_top, dtype=torch.float64) + 1) * GRID)  # of 1 - GRID, 1 - 2 GRID, ...
        won_if_top = float((-noise_T / odds).exp().mean())
        relative = won_if_top * num_top * GRID / (odds / (1 + odds))
        assert abs(relative - table) <= 0.011
        rng = torch.Generator().manual_seed(steps)
        count = 100_000
        top_N = torch.randint(num_top, (count,), generator=rng)
        u_N2 = torch.stack([1 - (top_N + 1) * GRID, torch.rand(count, generator=rng)], 1).float()
        found_N = sample_categorical_fp32(torch.tensor([[odds, 1.0]]).expand(count, -1), u_N2)
        assert binomtest(int((found_N == 0).sum()), count, min(won_if_top, 1.0)).pvalue > 1e-4


class NearRare(KeyedRng):
    """Every second uniform, the tokens', is in [0, 10 p) in place of [0, 1), with the p of its row."""

    def __init__(self, p_B: Tensor) -> None:
        super().__init__(7, torch.arange(len(p_B)))
        self.width_B1, self.count = 10 * p_B[:, None], 0

    def uniform(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        self.count += 1
        u = super().uniform(shape, device)
        return u if self.count % 2 else u * self.width_B1


@pytest.mark.parametrize("steps", STEPS)
def test_exact_samples_keep_the_rates_of_rare_tokens(steps: int) -> None:
    """Tokens of probability 1e-7 to 1e-3 at their true rates, by the whole sampler.

    The uniforms of a token are restricted to 10 p about its own interval (its true rate there is 1 in 10), so that hundreds of samples
    say what would take 10^10; what is shown is the length of the interval that the sampler gives to the token. Exact binomial tests.
    """
    rare = torch.tensor(sorted(PUBLISHED), dtype=torch.float64)
    below = rare.cumsum(0) - rare
    p = torch.cat([rare, 1 - rare.sum(0, keepdim=True)])
    row_B = torch.arange(2000) % len(rare)
    x_init, grid = torch.full((len(row_B), 1), len(p)), make_grid("uniform", steps)
    found = sample(Joint(p, timeless=True), MaskedProcess(len(p)), x_init, grid, NearRare(rare[row_B])).x[:, 0]
    for k, rate in enumerate(rare.tolist()):
        assert float(below[k]) + rate <= 10 * rate
        own = found[row_B == k]
        assert binomtest(int((own == k).sum()), len(own), 0.1).pvalue > 1e-4


def test_single_precision_uniforms_lie_on_their_grid_below_one() -> None:
    u = single_precision_uniform(KeyedRng(0, torch.arange(100)), (100, 1000), torch.device("cpu"))
    assert u.dtype == torch.float32
    assert bool((u * 2**24 == (u * 2**24).floor()).all())
    assert float(u.min()) >= 0 and float(u.max()) <= 1 - GRID
    assert abs(float((u * 2**24 % 2).mean()) - 0.5) < 0.01, "and reach all of its points"


@pytest.mark.parametrize("name", ["ancestral", "analytic"])
@pytest.mark.parametrize("end", ["sample", "argmax"])
def test_published_noise_samples_common_tokens_at_their_rates(name: str, end: str) -> None:
    states = []
    net = Joint(torch.tensor([0.5, 0.3, 0.2]))
    x = run(net, 6000, 3, name, grid="published", noise="legacy_fp32", end=end, on_step=states.append).x
    assert chisquare(torch.bincount(x[:, 0]).numpy(), [3000, 1800, 1200]).pvalue > 1e-4
    assert abs(float((states[0] == 3).double().mean()) - 2 / 3) < 0.03, "and reveals at the rate of the grid"


@pytest.mark.parametrize("name", ["ancestral", "analytic"])
def test_temperature_sharpens_published_samples_too(name: str) -> None:
    x = run(Joint(torch.tensor([0.6, 0.4])), 6000, 2, name, noise="legacy_fp32", temperature=0.5).x
    assert abs(float((x == 0).double().mean()) - 0.36 / (0.36 + 0.16)) < 0.03


def test_the_published_end_takes_the_likeliest() -> None:
    x = run(Joint(torch.tensor([0.4, 0.6])), 50, 1, noise="legacy_fp32", end="argmax").x
    assert bool((x == 1).all())


@pytest.mark.parametrize("name", ["confidence", "first_hitting", "remasking"])
def test_other_samplers_refuse_the_published_noise(name: str) -> None:
    with pytest.raises(ValueError, match="decoding.noise must be exact but for ancestral and analytic steps"):
        run(Joint(torch.tensor([0.4, 0.6])), 2, 1, name, noise="legacy_fp32")


def test_the_published_noise_is_for_masks() -> None:
    with pytest.raises(
        ValueError, match="noise must be exact but for ancestral and analytic steps of a masked process"
    ):
        run_chain(Exact(), 2, 2, noise="legacy_fp32")
