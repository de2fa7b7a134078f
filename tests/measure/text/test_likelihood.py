"""Bounds on the likelihood against enumeration, and last words."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from di4c_lm.domains.text.model import TextModel
from di4c_lm.losses.reading import mixture_marginals
from di4c_lm.measure.text.likelihood import (
    last_words,
    marginal_bound,
    marginal_distance,
    read_texts,
    step_bound,
    zero_shot_sets,
)
from di4c_lm.processes.masked import LogLinear, MaskedProcess
from tests.measure.models import CODES, component_log_p, every_text, log_mixture, text_model

TEXTS = every_text()


@pytest.mark.parametrize("codes", [0, CODES])
def test_at_one_step_the_bound_is_the_likelihood(codes: int) -> None:
    model = text_model(codes=codes)
    found = step_bound(model, TEXTS, steps=1, draws=1, lambdas=8, seed=0)
    expected = log_mixture(component_log_p(model), TEXTS)
    assert torch.allclose(-found, expected, atol=1e-4)
    assert float((-found).exp().sum()) == pytest.approx(1, abs=1e-4)


def test_the_distance_of_marginals_is_that_of_sums_over_texts() -> None:
    """A class chain, and a network that is not the one behind it."""
    model, teacher = text_model(codes=CODES, window="classes"), text_model(seed=1)
    p_N = (-step_bound(model, TEXTS, steps=1, draws=1, lambdas=1, seed=0)).exp()
    own_DS = torch.stack([torch.zeros(4).double().index_add(0, TEXTS[:, d], p_N) for d in range(3)])
    given_DS = component_log_p(teacher)[0, :, :4].exp()
    kl_N, worst_N = marginal_distance(model, teacher, TEXTS[:2], t=1.0, lambdas=1, seed=0)
    off_D = (own_DS - given_DS).abs().sum(1) / 2
    expected = (given_DS * (given_DS / own_DS).log()).sum()
    assert float(off_D.max()) > 0.01
    torch.testing.assert_close(worst_N, off_D.max().expand(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(kl_N, expected.expand(2), rtol=1e-3, atol=1e-5)


@dataclass
class Rescheduled:
    """A model under another schedule."""

    model: TextModel
    schedule: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def process(self) -> MaskedProcess:
        return MaskedProcess(self.model.mask_id, self.schedule)


@pytest.mark.parametrize("codes", [0, CODES])
def test_the_step_bound_starts_from_mask_alone_whatever_the_schedule_ends_with(codes: int) -> None:
    """A schedule that masks half of the positions at t = 1 is no reason to show the other half: the sampler does not see it."""
    model = text_model(codes=codes)
    found = step_bound(cast(Any, Rescheduled(model, LogLinear(eps=0.5))), TEXTS, steps=1, draws=1, lambdas=8, seed=0)
    assert torch.allclose(-found, log_mixture(component_log_p(model), TEXTS), atol=1e-4)


def test_the_step_bound_follows_the_schedule_between_its_ends() -> None:
    """Of two steps the first reveals what the schedule says: nothing where it masks everything until the last step."""

    class Late:
        def mask_prob(self, t: torch.Tensor) -> torch.Tensor:
            return (t > 0).double()

    model = text_model(codes=CODES)
    found = step_bound(cast(Any, Rescheduled(model, Late())), TEXTS, steps=2, draws=2, lambdas=8, seed=0)
    assert torch.allclose(-found, log_mixture(component_log_p(model), TEXTS), atol=1e-4)


@pytest.mark.parametrize("codes, steps", [(0, 2), (CODES, 3)])
def test_no_bound_promises_more_probability_than_there_is(codes: int, steps: int) -> None:
    """Summed over all texts, and over the sampler's own texts, whose bound cannot be below their entropy."""
    model = text_model(codes=codes)
    bound = step_bound(model, TEXTS, steps=steps, draws=60, lambdas=8, seed=0)
    assert float((-bound).exp().sum()) < 1.1
    drawn, _ = model.sample_tokens(2000, steps, seed=1, batch_size=2000)
    number = (drawn * torch.tensor([16, 4, 1])).sum(1)
    frequency = torch.bincount(number, minlength=64).double() / 2000
    entropy = -float(torch.xlogy(frequency, frequency).sum())
    assert entropy - 0.05 < float(bound[number].mean()) < entropy + 0.5


@torch.no_grad()
def _one_at_a_time(model: TextModel) -> torch.Tensor:
    """The bound's exact value: the mean over all orders of revealing one token after the other, λ averaged out of each."""
    total = torch.zeros(len(TEXTS), dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    codes = model.denoiser.training_latents(len(TEXTS), CODES, rng, torch.device("cpu"))
    for order in itertools.permutations(range(3)):
        x_t = torch.full_like(TEXTS, model.mask_id)
        for d in order:
            prediction = model.denoiser(x_t, torch.ones(len(TEXTS)), codes)
            law_NS = mixture_marginals(
                prediction.features[:, :, d], torch.full((len(TEXTS),), d), prediction.output_head
            )
            total -= law_NS.double().log()[torch.arange(len(TEXTS)), TEXTS[:, d]] / 6
            x_t = x_t.clone()
            x_t[:, d] = TEXTS[:, d]
    return total


@pytest.mark.parametrize("codes", [0, CODES])
def test_the_marginal_bound_is_the_mean_over_orders(codes: int) -> None:
    model = text_model(codes=codes)
    many = TEXTS.repeat(100, 1)
    found = marginal_bound(model, many, draws=8, lambdas=8, seed=0, batch_size=len(many))
    error = float(found.std()) / len(many) ** 0.5
    assert float(found.mean()) == pytest.approx(float(_one_at_a_time(model).mean()), abs=4 * error) and error < 0.15


def test_the_batch_size_does_not_matter() -> None:
    model = text_model(codes=CODES)
    one, all_ = (step_bound(model, TEXTS, steps=2, draws=2, lambdas=8, seed=0, batch_size=n) for n in (5, 64))
    assert torch.allclose(one, all_, atol=1e-5)


def test_last_words_are_hit_where_the_likeliest_token_is_the_word() -> None:
    model = text_model(length=6)
    linear = model.denoiser.output_layer.linear
    torch.nn.init.zeros_(linear.weight)
    linear.bias.data = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0])  # "aa"
    found = last_words(model, ["ab ab aa", "ab ab", "aa aa ab aa ab aa ab aa aa"], lambdas=4, seed=0, batch_size=2)
    assert found.tolist() == [1, 0, 1]


def test_bad_texts_are_named(tmp_path: Path) -> None:
    model = text_model(length=3)
    with pytest.raises(ValueError, match="text 1 has fewer than 2 words: 'ab'"):
        last_words(model, ["ab aa", "ab"], lambdas=4, seed=0)
    with pytest.raises(ValueError, match="sequences 1"):
        last_words(text_model(length=1), ["ab aa"], lambdas=4, seed=0)
    with pytest.raises(ValueError, match="expected a .txt file"):
        read_texts(tmp_path / "absent.txt")
    (tmp_path / "set.jsonl").write_text('{"body": "aa"}\n')
    with pytest.raises(ValueError, match='no JSON object with "text"'):
        read_texts(tmp_path / "set.jsonl")
    (tmp_path / "set.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no text"):
        read_texts(tmp_path / "set.jsonl")


def test_zero_shot_sets_are_cut_to_the_models_length(tmp_path: Path) -> None:
    model = text_model(length=3)
    with pytest.raises(ValueError, match="expected a folder of .txt or .jsonl files"):
        zero_shot_sets(tmp_path / "absent", model, limit=4)
    (tmp_path / "a.txt").write_text("aa ab\nab ab ab\n")
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"text": "aa ab aa"}) for _ in range(9)))
    found = zero_shot_sets(tmp_path, model, limit=4)
    assert found["a"].tolist() == [[2, 3, 0], [3, 3, 3]] and found["b"].shape == (4, 3)
    (tmp_path / "c.txt").write_text("aa ab")
    with pytest.raises(ValueError, match=r"c.txt: 3 tokens are too few for two sequences of 3"):
        zero_shot_sets(tmp_path, model, limit=4)
