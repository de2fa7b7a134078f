"""BrierLM against distributions that are known, its rows, and what is refused."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from di4c_lm.data.text.synthetic import MarkovChain
from di4c_lm.measure.statistics.bootstrap import Resampled
from di4c_lm.measure.text.brier import ORDERS, brier_lm, brier_part, brier_terms
from di4c_lm.measure.text.samples import TextRun
from di4c_lm.measure.text.suite import ReportConfig
from tests.measure.models import text_model, tokenizer
from tests.measure.tiny import gpt2

CHAIN = MarkovChain.random(3, 4, sharpness=1.5, seed=0)
OTHER = dataclasses.replace(CHAIN, transition_SS=0.7 * CHAIN.transition_SS + 0.1)  # flatter


def exact(model: MarkovChain, text: MarkovChain) -> list[float]:
    """Brier-n = Σ_y p(y) (2 q(y) - Σ_x q(x)²), over every sequence of n states, p the text's and q the model's."""
    every, found = torch.tensor(list(itertools.product(range(3), repeat=4))), []
    for n in ORDERS:
        p, q = (one.log_prob(every).exp().view(3**n, -1).sum(1) for one in (text, model))
        found.append(float((p * (2 * q - (q**2).sum())).sum()))
    return found


@pytest.mark.parametrize("model", [CHAIN, OTHER], ids=["own", "other"])
@pytest.mark.parametrize("samples", [2, 4])
def test_it_is_that_of_the_distributions(model: MarkovChain, samples: int) -> None:
    rng, num = torch.Generator().manual_seed(0), 60_000
    x_NKO = model.sample(num * samples, rng).view(num, samples, 4)
    terms = brier_terms(x_NKO, CHAIN.sample(num, rng))
    expected = exact(model, CHAIN)
    error = terms.std(0) / np.sqrt(num)
    assert (np.abs(terms.mean(0) - expected) < 4 * error).all() and error.max() < 0.006
    found = Resampled(brier_lm, tuple(terms.T)).interval(resamples=100, seed=0)
    wanted = 100 * np.prod(np.maximum(expected, 0)) ** 0.25
    assert abs(found.estimate - wanted) < 5 * found.error and found.error < 0.5


def test_no_model_scores_above_the_text_itself() -> None:
    own, other = exact(CHAIN, CHAIN), exact(OTHER, CHAIN)  # which begin alike
    assert own[0] == pytest.approx(other[0]) and all(a > b + 0.01 for a, b in zip(own[1:], other[1:], strict=True))


def test_the_published_estimator_takes_two_samples() -> None:
    y = torch.tensor([[1, 2, 3, 4]])
    both = torch.stack([y[0], torch.tensor([1, 2, 0, 4])])[None]
    assert brier_terms(both, y).tolist() == [[1, 1, 1, 1]]  # 1 + 1 - 1, and from n = 3 on 1 + 0 - 0
    wrong = torch.tensor([[[5, 2, 3, 4], [5, 2, 3, 4]]])
    assert brier_terms(wrong, y).tolist() == [[-1] * 4]
    assert brier_lm(*np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])) == pytest.approx(50)
    assert brier_lm(*np.array([[1.0, 1.0], [-0.5, 0.25]])) == 0
    with pytest.raises(ValueError, match="brier_samples must be at least 2, got 1"):
        brier_terms(both[:, :1], y)


LENGTH = 8
SETTINGS = ReportConfig(parts=("brier",), steps=(1, 2), brier_prompts=12, brier_samples=3, bootstrap=20, device="cpu")


def run_of(**more: object) -> TextRun:
    models = {"teacher": text_model(length=LENGTH), "student": text_model(codes=3, length=LENGTH, seed=1)}
    validation = torch.randint(2, 4, (20, LENGTH), generator=torch.Generator().manual_seed(0))
    place = {"settings": {}, "folder": Path(), "paths": {}, "evaluator": ""}
    return TextRun(**(place | {"models": models, "validation": validation} | more))  # pyright: ignore[reportArgumentType]


def test_models_and_counting_have_rows() -> None:
    found = brier_part(run_of(training=torch.randint(2, 4, (50, LENGTH))), SETTINGS)
    rows = {(row["task"], row["model"], row["steps"]): row for row in found["brier"]}
    ours = [(name, n) for name in ("teacher", "student") for n in (1, 2)]
    bigrams = [("token_bigram", n) for n in (1, 2)]
    assert list(rows) == [
        *(("continuation", *one) for one in (*ours, *((f"ngram_{n}", 1) for n in (2, 3, 5)), *bigrams)),
        *(("infilling", *one) for one in (*ours, *bigrams)),
    ]
    row = rows["continuation", "student", 2]
    assert row["brier_lm_low"] <= row["brier_lm"] <= row["brier_lm_high"] and row["brier_lm_error"] >= 0
    assert row["brier_1_low"] <= row["brier_1"] <= row["brier_1_high"] and 0 <= row["accuracy_4"] <= row["accuracy_1"]
    assert (row["sequences"], row["samples"], row["tokens_per_forward"]) == (12, 3, 4 / row["nfe"])
    assert rows["infilling", "student", 1]["tokens_per_forward"] == 4
    assert rows["continuation", "ngram_2", 1]["tokens_per_forward"] is None
    compared = [(one["of"], one["minus"], one["steps"], one["metric"]) for one in found["comparisons"]]
    assert compared == [
        ("student", "teacher", n, f"{metric}{task}")
        for task in ("", ", infilling")
        for n in (1, 2)
        for metric in ("brier_lm", *(f"brier_{n}" for n in ORDERS))
    ]


def test_infilling_sees_both_sides_of_the_gap() -> None:
    """A sampler that fills each gap with the token before it, for a text of two kinds of sequences, one of a token each."""
    seen: list[torch.Tensor] = []

    class Copies:
        masks, mask_id, length = True, 4, LENGTH

        def sample_tokens(
            self, num: int, steps: int, *, x_init: torch.Tensor, **_: object
        ) -> tuple[torch.Tensor, float]:
            seen.append(x_init)
            return x_init[:, :1].expand(-1, LENGTH), 1.0

    validation = torch.arange(20)[:, None].remainder(2).add(2).expand(-1, LENGTH).contiguous()
    run = run_of(models={"copies": Copies()}, validation=validation)
    rows = {row["task"]: row for row in brier_part(run, dataclasses.replace(SETTINGS, steps=(1,)))["brier"]}
    assert rows["continuation"]["brier_lm"] == rows["infilling"]["brier_lm"] == 100
    assert (seen[1] == 4).tolist() == [[False] * 2 + [True] * 4 + [False] * 2] * 36


def test_a_run_without_training_text_has_its_models_alone() -> None:
    assert {row["kind"] for row in brier_part(run_of(), SETTINGS)["brier"]} == {"model"}


def test_a_prompt_that_leaves_no_four_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="prompt_length must be 1 to 4, .* got 5"):
        brier_part(run_of(), dataclasses.replace(SETTINGS, prompt_length=5))


def test_an_autoregressive_model_continues_the_same_prompts(tmp_path: Path) -> None:
    model: Any = gpt2(vocabulary=5)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    settings = dataclasses.replace(SETTINGS, autoregressive="evaluator")
    rows = [row for row in brier_part(run_of(evaluator=str(tmp_path)), settings)["brier"] if row["kind"] == "baseline"]
    assert [(row["model"], row["task"], row["steps"]) for row in rows] == [("autoregressive", "continuation", 1)]
    assert (rows[0]["nfe"], rows[0]["tokens_per_forward"]) == (4, 1)
