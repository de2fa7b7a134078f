"""Rates of rare tokens: true for the exact draw at any number of steps, cut off by the published float32 noise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical_fp32
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.processes.schedules import LogLinear
from di4c_lm.samplers.ancestral import posterior_weights
from di4c_lm.samplers.draw import Draw, single_precision_uniform
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample

STEPS = (4, 16, 64, 256, 1024)
# How often a token of probability p is drawn relative to exact sampling, in the first of so many steps.
PUBLISHED = {
    1e-3: (1.00, 1.00, 1.00, 0.99, 0.97),
    1e-4: (1.00, 1.00, 0.98, 0.93, 0.73),
    1e-5: (0.99, 0.96, 0.83, 0.43, 0.01),
    1e-6: (0.91, 0.62, 0.09, 0.00, 0.00),
    1e-7: (0.36, 0.00, 0.00, 0.00, 0.00),
}
GRID = 2.0**-24  # of float32 uniforms


def odds_of(p: float, steps: int) -> float:
    """Of the token against MASK, in the first step from t = 1: the two that compete in the table."""
    one = torch.ones((), dtype=torch.float64)
    log_p = torch.tensor([[math.log(p), -1e6]], dtype=torch.float64)
    q_S = posterior_weights(log_p, MaskedProcess(1, LogLinear(eps=0.0)), one, one - 1 / steps)[0]
    return float(q_S[0] / q_S[1])


@pytest.mark.parametrize("p", PUBLISHED)
def test_float32_noise_reproduces_the_published_table(p: float) -> None:
    """Of the token's 2^24 uniforms only the largest can win. Those are drawn alone, as all of them would take 10^10 draws.

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
        num_draws = 100_000
        top_N = torch.randint(num_top, (num_draws,), generator=rng)
        u_N2 = torch.stack([1 - (top_N + 1) * GRID, torch.rand(num_draws, generator=rng)], 1).float()
        drawn_N = sample_categorical_fp32(torch.tensor([[odds, 1.0]]).expand(num_draws, -1), u_N2)
        assert binomtest(int((drawn_N == 0).sum()), num_draws, min(won_if_top, 1.0)).pvalue > 1e-4


class NearRare(KeyedRng):
    """Every second draw, the tokens', is uniform in [0, 10 p) in place of [0, 1), with the p of its row."""

    def __init__(self, p_B: Tensor) -> None:
        super().__init__(7, torch.arange(len(p_B)))
        self.width_B1, self.count = 10 * p_B[:, None], 0

    def uniform(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        self.count += 1
        u = super().uniform(shape, device)
        return u if self.count % 2 else u * self.width_B1


@pytest.mark.parametrize("steps", STEPS)
def test_exact_draws_keep_the_rates_of_rare_tokens(joint, steps: int) -> None:
    """Tokens of probability 1e-7 to 1e-3 at their true rates, by the whole sampler.

    The uniforms of a token are restricted to 10 p about its own interval (its true rate there is 1 in 10), so that hundreds of draws
    say what would take 10^10; what is shown is the length of the interval that the sampler gives to the token. Exact binomial tests.
    """
    rare = torch.tensor(sorted(PUBLISHED), dtype=torch.float64)
    below = rare.cumsum(0) - rare
    law = torch.cat([rare, 1 - rare.sum(0, keepdim=True)])
    row_B = torch.arange(2000) % len(rare)
    drawn = sample(
        joint(law, timeless=True),
        MaskedProcess(len(law)),
        torch.full((len(row_B), 1), len(law)),
        uniform_grid(steps),
        NearRare(rare[row_B]),
    ).x[:, 0]
    for k, p in enumerate(rare.tolist()):
        assert float(below[k]) + p <= 10 * p
        own = drawn[row_B == k]
        assert binomtest(int((own == k).sum()), len(own), 0.1).pvalue > 1e-4


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30), st.floats(0.01, 1.0), st.floats(0.1, 5.0))
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(
    logits: list[float], top_p: float, temperature: float
) -> None:
    logits_1S = torch.tensor([logits], dtype=torch.float64)
    p_S = (logits_1S / temperature).softmax(1)[0]
    kept_S = Draw(top_p=top_p, temperature=temperature).weights(logits_1S.clone())[0] > 0
    least = float(p_S[kept_S].min())
    possible_S = p_S > 1e-300
    assert float(p_S[kept_S].sum()) >= top_p - 1e-9
    assert float(p_S[kept_S & (p_S > least)].sum()) < top_p + 1e-9, "without its least likely members it holds less"
    assert not bool((possible_S & ~kept_S & (p_S > least * (1 + 1e-9))).any())


def test_single_precision_uniforms_lie_on_their_grid_below_one() -> None:
    u = single_precision_uniform(KeyedRng(0, torch.arange(100)), (100, 1000), torch.device("cpu"))
    assert u.dtype == torch.float32
    assert bool((u * 2**24 == (u * 2**24).floor()).all())
    assert float(u.min()) >= 0 and float(u.max()) <= 1 - GRID


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "temperature must be above 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
    ],
)
def test_an_impossible_draw_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Draw(**wrong)
