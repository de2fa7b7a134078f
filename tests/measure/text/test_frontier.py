"""Frontiers: interpolation at an entropy, the comparison of two, their rows, and what is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from di4c_lm.measure.render.pictures import frontier_plot
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.frontier import Frontier, frontier_part, log_perplexity_at, matched
from di4c_lm.measure.text.samples import TextRun
from di4c_lm.measure.text.suite import ReportConfig
from tests.measure.models import text_model, tokenizer
from tests.measure.tiny import gpt2

HOW = {"resamples": 200, "seed": 0}


def frontier(name: str, log_ppl: list[float], entropy: list[float], *, spread: float = 0.0, num: int = 50) -> Frontier:
    """Samples of 10 tokens each, of these means."""
    noise = np.random.default_rng(len(name)).normal(size=num) * spread
    nll = np.stack([10 * (value + noise - noise.mean()) for value in log_ppl])
    return Frontier(name, 4, nll, np.full_like(nll, 10.0), np.repeat(np.array(entropy)[:, None], num, 1))


def at(one: Frontier, entropy: float) -> float:
    return float(log_perplexity_at(entropy, *one.arrays(50)))


def test_between_temperatures_lines_are_straight_whatever_their_order() -> None:
    one = frontier("a", [5.0, 3.0, 4.0], [3.4, 3.0, 3.2])
    assert [at(one, entropy) for entropy in (3.0, 3.1, 3.2, 3.35, 3.4)] == pytest.approx([3.0, 3.5, 4.0, 4.75, 5.0])
    assert (at(one, 2.0), at(one, 9.0)) == pytest.approx((3.0, 5.0)) and one.reach == pytest.approx((3.0, 3.4))
    assert at(frontier("b", [2.0], [3.0]), 3.3) == pytest.approx(2.0)


def test_resamples_are_interpolated_each_by_itself() -> None:
    arrays = [np.random.default_rng(i).exponential(size=(7, 20)) + 1 for i in range(9)]
    together = log_perplexity_at(2.0, *arrays)
    assert together.shape == (7,)
    assert together[3] == pytest.approx(float(log_perplexity_at(2.0, *(one[3] for one in arrays))))


def test_models_that_differ_in_temperature_alone_are_equal_at_equal_entropy() -> None:
    """Both lie on log ppl = 2 entropy - 3, at other temperatures."""
    a, b = frontier("a", [3.0, 4.0], [3.0, 3.5]), frontier("b", [3.4, 4.2], [3.2, 3.6])
    row = matched(a, b, 3.3, **HOW)
    assert row["entropy"] == 3.3 and [row["gen_ppl"], row["against_gen_ppl"]] == pytest.approx([np.exp(3.6)] * 2)
    assert [row["ratio"], row["ratio_low"], row["detectable"]] == pytest.approx([1.0] * 3)


def test_the_ratio_has_an_interval_and_what_would_have_shown() -> None:
    a, b = (frontier(name, [3.0, 4.0], [3.0, 3.5], spread=0.5) for name in ("a", "bb"))
    row = matched(dataclasses.replace(a, nll_TN=a.nll_TN - 5.0), b, 3.2, **HOW)  # half a nat a token
    assert row["ratio"] == pytest.approx(np.exp(-0.5)) and row["ratio_low"] < row["ratio"] < row["ratio_high"] < 1
    assert np.log(row["detectable"]) == pytest.approx(2.80 * 0.5 * np.sqrt(2 / 50), rel=0.3)


def test_an_entropy_that_only_one_reaches_is_the_nearest_that_both_do() -> None:
    a, b = frontier("a", [3.0, 4.0], [3.0, 3.5]), frontier("b", [3.5, 5.0], [3.3, 4.0])
    assert [matched(a, b, wanted, **HOW)["entropy"] for wanted in (3.9, 1.0)] == pytest.approx([3.5, 3.3])
    apart = matched(a, frontier("c", [1.0, 2.0], [3.6, 3.8]), 3.4, **HOW)
    assert apart["entropy"] is apart["gen_ppl"] is apart["ratio_low"] is None
    assert set(apart) == set(matched(a, b, 3.4, **HOW))


LENGTH = 8
SETTINGS = ReportConfig(
    parts=("frontier",), steps=(1, 2), temperatures=(0.3, 1.0), num_samples=10, bootstrap=20, device="cpu"
)


def test_each_model_step_and_temperature_has_a_row_and_every_two_a_comparison() -> None:
    models = {"teacher": text_model(length=LENGTH), "student": text_model(codes=3, length=LENGTH, seed=1)}
    text = torch.randint(2, 4, (50, LENGTH), generator=torch.Generator().manual_seed(0))
    place: dict[str, Any] = {"settings": {}, "folder": Path(), "paths": {}, "evaluator": ""}
    run = TextRun(models=models, validation=text[:20], training=text, **place)
    evaluator = Evaluator(model=gpt2(vocabulary=5), tokenizer=tokenizer(), name="tiny")
    found = frontier_part(run, SETTINGS, [evaluator])
    rows = [(row["model"], row["steps"], row["temperature"]) for row in found["frontier"]]
    assert rows[0] == ("data", 0, None)
    assert sorted(rows[1:9]) == sorted(
        (name, n, t) for name in ("teacher", "student") for n in (1, 2) for t in (0.3, 1.0)
    )
    assert rows[9:] == [(f"ngram_{n}", 1, 1.0) for n in (2, 3, 5)] + [("token_bigram", n, 1.0) for n in (1, 2)]
    cold, warm = (next(row for row in found["frontier"] if row["temperature"] == t) for t in (0.3, 1.0))
    assert cold["entropy"] < warm["entropy"]
    pairs = [(row["model"], row["steps"], row["against"], row["against_steps"]) for row in found["matched"]]
    assert pairs[:4] == [("student", a, "teacher", b) for b, a in ((1, 1), (1, 2), (2, 1), (2, 2))]
    assert len(pairs) == 4 + 4 * 5 and len(set(pairs)) == len(pairs)
    assert found["pictures"]["frontier"].startswith(b"\x89PNG")


def test_no_model_makes_no_picture() -> None:
    assert frontier_plot([{"model": "data", "kind": "data", "steps": 0, "entropy": 3.0, "gen_ppl": 9.0}]) == b""


@pytest.mark.parametrize("temperatures", [(), (1.0,), (1.0, 1.0), (0.0, 1.0)])
def test_temperatures_that_make_no_frontier_are_refused(temperatures: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="temperatures must be two or more distinct numbers above 0"):
        ReportConfig(temperatures=temperatures)
