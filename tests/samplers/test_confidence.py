"""Confidence: how many tokens are kept, and which."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.processes.masked import MASKGIT_SCHEDULES, MaskedProcess
from di4c_lm.samplers.confidence import Confidence, Counts, published_counts, standard_gumbel, surest
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.registry import make_sampler
from tests.samplers.helpers import Even, Joint, product, run

CODES = 5


def masks_left(length: int, steps: int, sampler: Confidence, schedule: str = "arccos") -> list[int]:
    """How many of `length` positions are masked after each step."""
    left: list[int] = []
    process = MaskedProcess(CODES, MASKGIT_SCHEDULES[schedule])

    def count(x: Tensor) -> None:
        left.append(int((x[0] == CODES).sum()))

    run(Even(CODES), torch.full((2, length), CODES), steps, sampler, process=process, on_step=count)
    return left


@pytest.mark.parametrize("counts, steps", [([41, 44, 53, 118], 4), ([20, 21, 22, 22, 25, 28, 36, 82], 8)])
def test_the_published_numbers_of_tokens(counts: list[int], steps: int) -> None:
    left = masks_left(256, steps, Confidence(counts="published"))
    assert left == (256 - torch.tensor(counts).cumsum(0)).tolist()
    times = make_grid("uniform", steps)
    assert published_counts(MASKGIT_SCHEDULES["arccos"].mask_prob(times), torch.tensor([256])).tolist() == [counts]


@settings(max_examples=40, deadline=None)
@given(
    steps=st.integers(1, 12),
    length=st.integers(1, 9),
    counts=st.sampled_from(["expected", "published"]),
    schedule=st.sampled_from(sorted(MASKGIT_SCHEDULES)),
)
def test_any_number_of_steps_ends_without_mask(steps: int, length: int, counts: Counts, schedule: str) -> None:
    left = masks_left(length, steps, Confidence(counts=counts), schedule)
    assert len(left) == steps and left[-1] == 0
    assert all(a >= b for a, b in zip([length, *left], left, strict=False))
    if counts == "expected":
        assert all(a > b or a == 0 for a, b in zip([length, *left], left, strict=False))


def test_the_surest_tokens_are_kept_first() -> None:
    """Without noise on the choice the position whose state is nearly certain becomes visible before the two that are open."""
    states = []
    net = Joint(product([0.5, 0.5], [0.999, 0.001], [0.5, 0.5]))
    run(net, 200, 3, "confidence", {"choice_temperature": 0.0}, on_step=states.append)
    certain = states[0][:, 1] == 0
    assert float(certain.double().mean()) > 0.98 and bool((states[0] == 2).sum(1).eq(2).all())


def test_noise_on_the_choice_is_full_in_the_first_step() -> None:
    """However sure one position is, a large temperature chooses among the three alike."""
    states = []
    net = Joint(product([0.5, 0.5], [0.999, 0.001], [0.5, 0.5]))
    run(net, 3000, 3, "confidence", {"choice_temperature": 1e6}, on_step=states.append)
    assert (states[0] != 2).double().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


def test_noise_on_the_choice_falls_from_step_to_step() -> None:
    """With Gumbel noise of temperature T the sure position is chosen before m open ones with probability 1 / (1 + m 2^(-1/T)).

    In the first of three steps T is 1, in the second 1/2.
    """
    states = []
    net = Joint(product([0.5, 0.5], [0.999, 0.001], [0.5, 0.5]))
    run(net, 20_000, 3, "confidence", {"choice_temperature": 1.0}, on_step=states.append)
    first, second = (state[:, 1] != 2 for state in states[:2])
    assert float(first.double().mean()) == pytest.approx(1 / 2, abs=0.02)
    assert float(second[~first].double().mean()) == pytest.approx(1 / (1 + 2**-2), abs=0.02)


@given(
    st.integers(1, 12), st.lists(st.integers(0, 40), min_size=1, max_size=4), st.sampled_from(sorted(MASKGIT_SCHEDULES))
)
def test_the_published_numbers_make_up_the_whole(steps: int, lengths: list[int], schedule: str) -> None:
    mask_prob = MASKGIT_SCHEDULES[schedule].mask_prob(make_grid("uniform", steps))
    assert published_counts(mask_prob, torch.tensor(lengths)).sum(1).tolist() == lengths


def test_the_surest_masked_positions_are_kept() -> None:
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
    with pytest.raises(ValueError, match=r"sampler\.counts must be one of expected, published, got 'most'"):
        make_sampler("confidence", {"counts": "most"})
