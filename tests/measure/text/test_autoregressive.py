"""A causal language model as a sampler: its own distribution, given the beginnings of texts."""

from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from di4c_lm.measure.text.autoregressive import autoregressive_sampler
from di4c_lm.measure.text.evaluator import Evaluator
from tests.measure.models import tokenizer
from tests.measure.tiny import gpt2, words


def evaluator(**more: Any) -> Evaluator:
    model: Any = gpt2(vocabulary=5)
    model.generation_config.top_k, model.generation_config.temperature = 1, 0.5  # its own, which have no say
    return Evaluator(model=model, **{"tokenizer": tokenizer(), "name": "a model", **more})


def test_its_samples_are_from_its_whole_distribution() -> None:
    one = evaluator()
    given = torch.tensor([[2, 3]]).repeat(2000, 1)
    tokens_ND, nfe = autoregressive_sampler(one, tokenizer(), 4, 512)(given, 1, 0)
    assert tokens_ND.shape == (2000, 4) and nfe == 2 and torch.equal(tokens_ND[:, :2], given)
    with torch.no_grad():
        first_S = one.model(given[:1]).logits[0, -1].softmax(0)
        every = torch.cat([given[:5], torch.arange(5)[:, None]], 1)
        p_SS = first_S[:, None] * one.model(every).logits[:, -1].softmax(1)
    counts = torch.bincount(tokens_ND[:, 2] * 5 + tokens_ND[:, 3], minlength=25)
    likely = p_SS.flatten() > 0.003
    rest = [int(counts[~likely].sum())], [float(p_SS.flatten()[~likely].sum())]
    seen, expected = (
        torch.cat([counts[likely], torch.tensor(rest[0])]),
        torch.cat([p_SS.flatten()[likely], torch.tensor(rest[1])]),
    )
    assert chisquare(seen, 2000 * expected / expected.sum()).pvalue > 1e-4


def test_the_seed_is_its_own_and_leaves_the_global_one() -> None:
    sampler, given = autoregressive_sampler(evaluator(), tokenizer(), 6, 8), torch.full((8, 2), 2)
    before = torch.get_rng_state()
    assert torch.equal(sampler(given, 1, 3)[0], sampler(given, 1, 3)[0])
    assert not torch.equal(sampler(given, 1, 3)[0], sampler(given, 1, 4)[0])
    assert torch.equal(before, torch.get_rng_state())


def test_what_it_cannot_do_is_named() -> None:
    with pytest.raises(
        ValueError, match="autoregressive must be a model with the tokenizer of those .*, got 'a model'"
    ):
        autoregressive_sampler(evaluator(tokenizer=words("other")), tokenizer(), 4, 8)
    with pytest.raises(ValueError, match="autoregressive must be given the beginnings of texts"):
        autoregressive_sampler(evaluator(), tokenizer(), 4, 8)(3, 1, 0)
