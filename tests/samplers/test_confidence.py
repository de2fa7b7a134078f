from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.networks.output_head import LinearHead
from di4c_lm.processes.denoiser import Prediction
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.processes.schedules import MASKGIT_SCHEDULES
from di4c_lm.samplers.confidence import Confidence, Counts, published_counts, standard_gumbel, surest
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.registry import make_sampler
from di4c_lm.samplers.trajectory import sample

CODES = 5


class Flat:
    """Every code but MASK equally likely everywhere; a class makes itself likelier. `asked` holds the classes of each call."""

    def __init__(self) -> None:
        self.asked: list[Tensor | None] = []

    def sample_latents(self, num_batch: int, num_lambdas: int, uniform: Any) -> None:
        return None

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Tensor | None = None) -> Prediction:
        self.asked.append(cond)
        logits = torch.zeros(*x_t.shape, CODES + 1)
        logits[..., CODES] = -1e6
        if cond is not None:
            logits[torch.arange(len(cond)), :, cond] += 1
        return Prediction(logits[:, None], self.output_head())

    def output_head(self) -> LinearHead:
        return LinearHead(torch.eye(CODES + 1))


def masks(length: int, steps: int, sampler: Confidence, schedule: str = "arccos") -> list[int]:
    """How many masks are left after each step."""
    left: list[int] = []
    sample(
        Flat(), MaskedProcess(CODES, MASKGIT_SCHEDULES[schedule]), torch.full((2, length), CODES), uniform_grid(steps),
        KeyedRng(0, torch.arange(2)), sampler=sampler, on_step=lambda x: left.append(int((x[0] == CODES).sum())),
    )  # fmt: skip
    return left


@pytest.mark.parametrize("counts, tokens", [([41, 44, 53, 118], 4), ([20, 21, 22, 22, 25, 28, 36, 82], 8)])
def test_the_published_numbers_of_tokens(counts: list[int], tokens: int) -> None:
    assert masks(256, tokens, Confidence(counts="published")) == (256 - torch.tensor(counts).cumsum(0)).tolist()
    times = uniform_grid(tokens)
    assert published_counts(MASKGIT_SCHEDULES["arccos"].mask_prob(times), torch.tensor([256])).tolist() == [counts]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 12),
    length=st.integers(1, 9),
    counts=st.sampled_from(["expected", "published"]),
    schedule=st.sampled_from(sorted(MASKGIT_SCHEDULES)),
)
def test_any_number_of_steps_ends_without_mask(steps: int, length: int, counts: Counts, schedule: str) -> None:
    left = masks(length, steps, Confidence(counts=counts), schedule)
    assert len(left) == steps and left[-1] == 0
    assert all(a >= b for a, b in zip([length, *left], left, strict=False))
    if counts == "expected":
        assert all(a > b or a == 0 for a, b in zip([length, *left], left, strict=False))


def test_guidance_is_ramped_and_whole_in_a_single_step() -> None:
    for steps, guided in ((1, [True]), (3, [False, True, True])):
        network = Flat()
        drawn = sample(
            network, MaskedProcess(CODES), torch.full((2, 8), CODES), uniform_grid(steps), torch.Generator(),
            sampler=Confidence(guidance=2.0), cond=torch.tensor([1, 3]),
        )  # fmt: skip
        calls = [[cond is not None] + [False] * with_free for cond, with_free in zip([1] * steps, guided, strict=True)]
        assert [cond is not None for cond in network.asked] == [flag for call in calls for flag in call]
        assert drawn.nfe == steps + sum(guided)


def test_the_surest_masked_places_are_kept() -> None:
    score = torch.tensor([[3.0, 9.0, 1.0, 2.0], [0.0, 1.0, 2.0, 3.0]])
    masked = torch.tensor([[True, False, True, True], [True, True, True, False]])
    kept = surest(score, masked, torch.tensor([2, 5]))
    assert kept.tolist() == [[True, False, False, True], [True, True, True, False]]


def test_gumbel_noise_has_its_moments() -> None:
    u = torch.rand(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = standard_gumbel(u)
    assert abs(float(g.mean()) - 0.5772) < 0.02 and abs(float(g.var()) - 1.6449) < 0.05
    assert bool(standard_gumbel(torch.zeros(1, dtype=torch.float64)).isfinite().all())


def test_unknown_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="confidence.counts='most' is impossible: allowed is expected, published"):
        make_sampler("confidence", {"counts": "most"})
