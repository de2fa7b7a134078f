"""Laws of ancestral sampling, on networks whose law is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from di4c_lm.networks.output_head import LinearHead
from di4c_lm.processes.denoiser import Prediction
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.draw import Draw
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.trajectory import sample


class Law:
    """A denoiser that gives every position the law `p`; with `components`, λ picks the whole law among them."""

    def __init__(self, p: Tensor, *, components: bool = False) -> None:
        self.log_p = torch.cat([p.log(), torch.full((*p.shape[:-1], 1), -1e6)], -1)
        self.components = components
        self.calls: list[int] = []

    def sample_latents(self, num_batch: int, num_lambdas: int, uniform) -> Tensor | None:
        if not self.components:
            return None
        return (uniform((num_batch, num_lambdas, 1)) * len(self.log_p)).long()

    def __call__(self, x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Tensor | None = None) -> Prediction:
        self.calls.append(len(x_t))
        rows = self.log_p.expand(len(x_t), -1) if lam is None else self.log_p[lam[:, 0, 0]]
        features = rows[:, None, None].expand(-1, 1, x_t.shape[1], -1)
        return Prediction(features.float(), self.output_head())

    def output_head(self) -> LinearHead:
        return LinearHead(torch.eye(self.log_p.shape[-1]))


def masked(num_samples: int, length: int, mask_id: int) -> Tensor:
    return torch.full((num_samples, length), mask_id)


@pytest.mark.parametrize("steps", [1, 2, 5, 16])
def test_every_step_count_draws_the_law(steps: int) -> None:
    p = torch.tensor([0.7, 0.2, 0.0999, 0.0001], dtype=torch.float64)
    drawn = sample(
        Law(p), MaskedProcess(4), masked(20_000, 5, 4), uniform_grid(steps), KeyedRng(1, torch.arange(20_000))
    )
    counts = torch.bincount(drawn.x.flatten(), minlength=5)
    assert counts[4] == 0
    assert chisquare(counts[:4].numpy(), (p * counts.sum()).numpy()).pvalue > 1e-4


def test_one_call_of_a_mixture_correlates_and_a_product_does_not() -> None:
    """Two bits that are always equal (Di4C, section 2): a mixture of two components draws them in one step."""
    certain = torch.tensor([[1.0, 1e-30], [1e-30, 1.0]], dtype=torch.float64)
    rng = KeyedRng(0, torch.arange(4000))
    mixture = sample(Law(certain, components=True), MaskedProcess(2), masked(4000, 2, 2), uniform_grid(1), rng).x
    product = sample(Law(certain.mean(0)), MaskedProcess(2), masked(4000, 2, 2), uniform_grid(1), rng).x
    assert bool((mixture[:, 0] == mixture[:, 1]).all())
    assert abs(float((product[:, 0] == product[:, 1]).double().mean()) - 0.5) < 0.04
    assert abs(float(mixture.double().mean()) - 0.5) < 0.04


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 10**6))
def test_given_tokens_stay_and_no_mask_is_left(steps: int, num_samples: int, known: list[bool], seed: int) -> None:
    given_D = torch.where(torch.tensor(known), torch.arange(6) % 3, 3)
    drawn = sample(
        Law(torch.ones(3) / 3),
        MaskedProcess(3),
        given_D.repeat(num_samples, 1),
        uniform_grid(steps),
        KeyedRng(seed, torch.arange(num_samples)),
    )
    assert bool((drawn.x < 3).all())
    assert bool((drawn.x[:, torch.tensor(known)] == given_D[torch.tensor(known)]).all())
    assert drawn.nfe <= steps


def test_calls_are_counted_as_they_were_made() -> None:
    law = Law(torch.ones(3) / 3)
    drawn = sample(law, MaskedProcess(3), masked(50, 2, 3), uniform_grid(64), KeyedRng(0, torch.arange(50)))
    assert drawn.nfe == sum(law.calls) / 50
    assert 1 <= drawn.nfe <= 2, "two positions are revealed in at most two steps; the others make no call"


def test_all_given_makes_no_call() -> None:
    law = Law(torch.ones(3) / 3)
    drawn = sample(
        law, MaskedProcess(3), torch.zeros(4, 5, dtype=torch.long), uniform_grid(8), KeyedRng(0, torch.arange(4))
    )
    assert drawn.nfe == 0
    assert not law.calls


def test_a_sample_does_not_depend_on_its_batch() -> None:
    law, process = Law(torch.ones(7) / 7), MaskedProcess(7)
    whole = sample(law, process, masked(12, 9, 7), uniform_grid(4), KeyedRng(5, torch.arange(12))).x
    part = sample(law, process, masked(5, 9, 7), uniform_grid(4), KeyedRng(5, torch.arange(3, 8))).x
    assert torch.equal(whole[3:8], part)


def test_temperature_sharpens() -> None:
    p = torch.tensor([0.6, 0.4], dtype=torch.float64)
    x = sample(
        Law(p),
        MaskedProcess(2),
        masked(8000, 2, 2),
        uniform_grid(2),
        KeyedRng(0, torch.arange(8000)),
        draw=Draw(temperature=0.5),
    ).x
    assert abs(float((x == 0).double().mean()) - 0.36 / (0.36 + 0.16)) < 0.02


@pytest.mark.parametrize("times", [[1.0], [1.0, 0.5], [0.9, 0.0], [1.0, 0.5, 0.5, 0.0]])
def test_a_grid_that_is_none_is_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="descend from 1 to 0"):
        sample(
            Law(torch.ones(2) / 2), MaskedProcess(2), masked(1, 2, 2), torch.tensor(times).double(), torch.Generator()
        )


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        uniform_grid(0)


def test_grid_is_uniform() -> None:
    assert uniform_grid(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert math.isclose(float(uniform_grid(1000)[1]), 0.999)
