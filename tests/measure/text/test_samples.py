"""Samples of all seeds, and how an evaluator reads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.samples import Reader, Reading, TextRun, TextSamples, sampled
from tests.measure.tiny import gpt2, words

TOKENIZER = words(*"abcdefg")


def sampler(given: int | Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
    num = given if isinstance(given, int) else len(given)
    return torch.full((num, 4), 10 * steps + seed), steps + seed / 10


def test_seeds_follow_one_another_and_calls_are_averaged() -> None:
    found = list(sampled({"m": sampler}, 3, length=4, steps=(1, 2), seeds=(0, 5), progress=False, noise="float32"))
    assert [(one.name, one.steps, one.nfe, one.seeds, one.noise) for one in found] == [
        ("m", 1, 1.25, 2, "float32"),
        ("m", 2, 2.25, 2, "float32"),
    ]
    assert found[0].tokens[:, 0].tolist() == [10, 10, 10, 15, 15, 15]


def test_prompts_are_handed_on() -> None:
    (one,) = sampled(
        {"m": sampler}, torch.zeros(5, 2, dtype=torch.long), length=4, steps=(1,), seeds=(0,), progress=False
    )
    assert one.tokens.shape == (5, 4)


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'m' at 1 steps gave samples of shape \(3, 4\), expected \(3, 6\)"):
        list(sampled({"m": sampler}, 3, length=6, steps=(1,), seeds=(0,), progress=False))


def test_the_prompt_is_no_part_of_what_was_sampled() -> None:
    tokens = torch.arange(2, 8).view(1, 6)
    assert TextSamples(name="m", tokens=tokens, context=2).own.tolist() == [[4, 5, 6, 7]]


def test_settings_reach_the_evaluator() -> None:
    evaluator = Evaluator(model=gpt2(vocabulary=len(TOKENIZER), context=4), tokenizer=TOKENIZER, name="short")
    samples = TextSamples(name="m", tokens=torch.tensor([[2, 3, 0, 4, 0, 5]]))
    reader = Reader(tokenizer=TOKENIZER, evaluators=(evaluator,), settings=Reading(overflow="truncate"), progress=False)
    assert [one.ids for one in reader.documents(evaluator, samples)] == [(2, 3, 0, 4)]
    whole = Reader(tokenizer=TOKENIZER, evaluators=(evaluator,), settings=Reading(eos="first"), progress=False)
    _, tokens = whole.nll(evaluator, reader.documents(evaluator, samples), "m")
    assert tokens.tolist() == [2.0]  # the token after the first, and EOS


def test_validation_sequences_are_chosen_from_all_documents() -> None:
    """The first of a corpus are of one document."""
    place: dict[str, Any] = {"settings": {}, "folder": Path(), "models": {}, "paths": {}, "evaluator": ""}
    run = TextRun(validation=torch.arange(100)[:, None], **place)
    chosen = run.some_validation(20, seed=0)[:, 0]
    assert len(set(chosen.tolist())) == 20 and chosen.max() > 60
    assert torch.equal(chosen, run.some_validation(20, seed=0)[:, 0])
    assert not torch.equal(chosen, run.some_validation(20, seed=1)[:, 0])
    assert sorted(run.some_validation(200, seed=0)[:, 0].tolist()) == list(range(100))
