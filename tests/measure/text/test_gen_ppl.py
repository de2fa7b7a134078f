"""Generative perplexity: rows, tests, the conditional form, its settings and its arguments."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import fields
from di4c_lm.measure.flow import Measured
from di4c_lm.measure.text.counting import NgramModel, ngram_sampler
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.gen_ppl import (
    Baseline,
    GenPplConfig,
    beaten_by,
    detectable_of,
    gen_ppl_table,
    measure,
    verdict,
)
from di4c_lm.measure.text.perplexity import Document, score
from di4c_lm.measure.text.samples import Reader
from tests.measure.tiny import gpt2, letters, words

TOKENIZER = words(*"abcdefg")  # ids 2 to 8 are letters, 9 is MASK
EVALUATOR = Evaluator(model=gpt2(vocabulary=len(TOKENIZER)), tokenizer=TOKENIZER, name="tiny")
SETTINGS = GenPplConfig(steps=(1, 4), num_samples=12, batch_size=5, seed=3, bootstrap=50)
LENGTH = 6


def uniform(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
    rng = torch.Generator().manual_seed(100 * seed + steps)
    return torch.randint(2, 9, (num_samples, LENGTH), generator=rng), float(steps)


def constant(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
    return torch.full((num_samples, LENGTH), 2 + seed % 2), 0.5


HELD_OUT = uniform(20, 1, 9)[0]


def measured(
    samplers: dict[str, Any],
    data: Tensor = HELD_OUT,
    *,
    evaluator: Evaluator = EVALUATOR,
    settings: GenPplConfig = SETTINGS,
) -> Measured:
    return measure(
        samplers, data, Reader(tokenizer=TOKENIZER, evaluators=(evaluator,), settings=settings, progress=False)
    )


def test_rows_are_those_of_the_interface() -> None:
    rows = measured({"teacher": uniform, "student": constant}, HELD_OUT).rows
    assert [(r["model"], r["steps"], r["nfe"]) for r in rows] == [
        ("data", 0, 0.0),
        ("teacher", 1, 1.0),
        ("teacher", 4, 4.0),
        ("student", 1, 0.5),
        ("student", 4, 0.5),
    ]
    for r in rows:
        assert r["gen_ppl_low"] <= r["gen_ppl"] <= r["gen_ppl_high"]
        assert r["entropy_low"] <= r["entropy"] <= r["entropy_high"]
        assert r["num_samples"] == 12 and r["judge_tokens"] == 12 * (LENGTH - 1)
    assert rows[-1]["entropy"] == 0 and rows[-1]["gen_ppl_low"] == pytest.approx(rows[-1]["gen_ppl_high"])


def test_baselines_have_rows_of_their_own_and_models_say_which_beat_them() -> None:
    baselines = {"ngram_2": Baseline(constant, (1,)), "token_bigram": Baseline(uniform)}
    reader = Reader(tokenizer=TOKENIZER, evaluators=(EVALUATOR,), settings=SETTINGS, progress=False)
    found = measure({"student": uniform}, HELD_OUT, reader, baselines)
    assert [(row["model"], row["steps"], row.get("kind")) for row in found.rows] == [
        ("data", 0, None),
        ("student", 1, None),
        ("student", 4, None),
        ("ngram_2", 1, "baseline"),
        ("token_bigram", 1, "baseline"),
        ("token_bigram", 4, "baseline"),
    ]
    assert [row["model"] for row in found.rows if "beaten_by" in row] == ["student"] * 2
    assert {row["of"] for row in found.comparisons} <= {"student"}
    assert all("copied_8" not in row for row in found.rows)
    of_text = measure({"student": uniform}, HELD_OUT, reader, training=HELD_OUT).rows
    assert of_text[0]["copied_8"] == 1 and all(row["copied_8"] < 0.1 for row in of_text[1:])


def test_the_table_marks_what_counting_beats() -> None:
    found = measured({"m": uniform}, HELD_OUT)
    assert "*" not in gen_ppl_table(found)
    rows = [
        one | ({"beaten_by": ["ngram_5"] * (one["steps"] == 1)} if one["model"] == "m" else {}) for one in found.rows
    ]
    lines = gen_ppl_table(dataclasses.replace(found, rows=rows)).splitlines()
    assert [line.split()[:2] for line in lines if "* " in line] == [["m", "1"]]
    assert lines[-1] == "*: beaten by counting (hollow in the picture)"


def row(model: str, steps: int, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"model": model, "steps": steps, "gen_ppl_low": low, "gen_ppl_high": high, **more}


def test_a_model_is_beaten_where_the_whole_interval_is_below_its_own() -> None:
    ngram, near = row("ngram_5", 1, 60, 70, nfe=0), row("ngram_2", 1, 80, 101, nfe=0)
    bigram = row("token_bigram", 4, 60, 70, nfe=4)
    every = [ngram, near, bigram]
    assert beaten_by(row("student", 4, 100, 110), every) == ["ngram_5", "token_bigram"]
    assert beaten_by(row("student", 8, 100, 110), every) == ["ngram_5"]
    assert beaten_by(row("student", 8, 65, 75), every) == []


def test_the_verdict_says_at_which_steps_counting_wins() -> None:
    beaten, free = {"beaten_by": ["ngram_5"]}, {"beaten_by": []}
    rows = [row("teacher", 1, 9, 9, **beaten, validation_ppl=52.51), row("teacher", 2, 9, 9, **beaten)]
    rows += [row("student", 1, 9, 9, **free), row("student", 2, 9, 9, **beaten), row("copula", 1, 9, 9, **free)]
    assert verdict([*rows, row("ngram_5", 1, 9, 9, validation_ppl=18.3)]).splitlines() == [
        "counting beats teacher at every number of steps, by generative perplexity: ngram_5",
        "counting beats student at 2 steps, by generative perplexity: ngram_5",
        "no n-gram and no token bigram beats copula by generative perplexity",
        "perplexity of validation text: teacher at most 52.51, ngram_5 18.3",
    ]
    assert verdict([row("data", 0, 9, 9)]) == ""


def test_a_row_is_the_perplexity_of_what_was_sampled() -> None:
    found = measured({"m": uniform}, HELD_OUT).rows[2]
    texts = [Document(ids=tuple(ids)) for ids in uniform(12, 4, SETTINGS.seed)[0].tolist()]
    nll, tokens = score(EVALUATOR.model, texts, batch_size=1)
    assert found["gen_ppl"] == pytest.approx(math.exp(nll.sum() / tokens.sum()))
    assert found["gen_ppl_doc"] == pytest.approx(math.exp((nll / tokens).mean()))


def test_real_against_real_does_not_differ_and_constant_does() -> None:
    found = measured({"a": uniform, "b": uniform, "c": constant}, HELD_OUT).comparisons
    p = {(c["of"], c["minus"], c["steps"], c["metric"]): c["p_value"] for c in found}
    assert len(p) == 3 * 2 * 2
    assert p["b", "a", 4, "gen_ppl"] == 1.0  # the same seed gave the same samples
    assert p["c", "a", 4, "entropy"] == pytest.approx(1 / 51)


def test_the_foot_of_the_table_says_which_differences_would_have_shown() -> None:
    found = measured({"a": uniform, "b": uniform, "c": constant}, HELD_OUT)
    by_metric = {row["metric"]: row for row in detectable_of(found)}
    assert by_metric["gen_ppl"]["comparisons"] == by_metric["entropy"]["comparisons"] == 2 * 2
    assert [one["detectable"] for one in found.comparisons if one["of"] == "b"] == [None] * 4  # the same samples as a's
    assert 0 < by_metric["entropy"]["smallest"] < by_metric["entropy"]["largest"]
    assert "smallest differences that these samples show" in gen_ppl_table(found)
    alone = detectable_of(measured({"a": uniform}, HELD_OUT))
    assert [row["metric"] for row in alone] == ["gen_ppl", "entropy"] and alone[0]["smallest"] > 0


def test_fewer_held_out_sequences_are_all_used() -> None:
    found = measured({"m": uniform}, HELD_OUT[:7])
    assert [r["num_samples"] for r in found.rows] == [7, 12, 12]


def test_a_evaluator_with_another_tokenizer_reads_the_text() -> None:
    tokenizer = letters()
    evaluator = Evaluator(model=gpt2(vocabulary=len(tokenizer), scale=0.0), tokenizer=tokenizer, name="letters")
    found = measured({"m": uniform}, HELD_OUT, evaluator=evaluator)
    assert all(r["gen_ppl"] == pytest.approx(len(tokenizer)) for r in found.rows)  # it is uniform
    assert found.rows[0]["judge_tokens"] == 12 * (2 * LENGTH - 2)  # letters, a space between each two, less the first


def test_scoring_rules_reach_the_evaluator() -> None:
    evaluator = Evaluator(model=gpt2(vocabulary=len(TOKENIZER), context=4), tokenizer=TOKENIZER, name="short")
    with pytest.raises(ValueError, match="6 tokens under the evaluator, which reads at most 4"):
        measured({"m": uniform}, evaluator=evaluator)
    truncating = dataclasses.replace(SETTINGS, overflow="truncate", evaluator_batch_size=2)
    cut = measured({"m": uniform}, evaluator=evaluator, settings=truncating)
    assert cut.rows[0]["judge_tokens"] == 12 * 3


@pytest.mark.parametrize(
    "sampler, message",
    [
        (lambda n, *_: (torch.full((n - 1, LENGTH), 2), 1.0), r"'m' at 1 steps gave .* \(11, 6\), expected \(12, 6\)"),
        (lambda n, *_: (torch.full((n, LENGTH), 9), 1.0), "sample 0 still holds 6 MASK"),
    ],
)
def test_faulty_samplers_are_named(sampler, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measured({"m": sampler}, HELD_OUT)


def test_impossible_requests_are_named() -> None:
    with pytest.raises(ValueError, match="1 validation sequences are too few"):
        measured({"m": uniform}, HELD_OUT[:1])
    with pytest.raises(ValueError, match="'data'"):
        measured({"data": uniform}, HELD_OUT)


PROMPTED = dataclasses.replace(
    SETTINGS, conditional=True, prompts=4, continuations=3, prompt_length=2, continuation_length=3
)


def continues(prompts: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
    tokens = uniform(len(prompts), steps, seed)[0]
    return torch.cat([prompts, tokens[:, prompts.shape[1] :]], 1), float(steps)


def test_conditional_scores_continuations_given_prompts() -> None:
    seen: list[Tensor] = []

    def sampler(prompts: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        tokens, nfe = continues(prompts, steps, seed)
        seen.append(tokens)
        return tokens, nfe

    rows = measured({"m": sampler}, HELD_OUT, settings=PROMPTED).rows
    assert [r["num_samples"] for r in rows] == [4, 12, 12]
    texts = [Document(ids=tuple(ids), context=2) for ids in seen[0][:, :5].tolist()]
    nll, tokens = score(EVALUATOR.model, texts, batch_size=4)
    assert rows[1]["gen_ppl"] == pytest.approx(math.exp(nll.sum() / tokens.sum()))
    assert rows[1]["judge_tokens"] == 12 * 3
    prompts = seen[0][:, :2].reshape(4, 3, 2)
    assert (prompts == prompts[:, :1]).all()  # neighbours share a prompt
    entropies = [-sum(c * math.log(c) for c in np.unique(t, return_counts=True)[1] / 3) for t in seen[0][:, 2:5]]
    assert rows[1]["entropy"] == pytest.approx(np.mean(entropies))


def test_counting_continues_prompts_too() -> None:
    counted = ngram_sampler(NgramModel(HELD_OUT.numpy(), len(TOKENIZER), 2), LENGTH)
    reader = Reader(tokenizer=TOKENIZER, evaluators=(EVALUATOR,), settings=PROMPTED, progress=False)
    rows = measure({"m": continues}, HELD_OUT, reader, {"ngram_2": Baseline(counted, (1,))}).rows
    ngram = rows[-1]
    assert (ngram["model"], ngram["kind"], ngram["num_samples"], ngram["judge_tokens"]) == (
        "ngram_2",
        "baseline",
        12,
        36,
    )
    assert [row["model"] for row in rows if "beaten_by" in row] == ["m", "m"]


def test_conditional_intervals_resample_prompts() -> None:
    """Continuations that repeat each other add no information: the interval must stay as wide as with one."""

    def repeated(prompts: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        own = torch.randint(2, 9, (16, LENGTH - 2), generator=torch.Generator().manual_seed(seed))
        return torch.cat([prompts, own.repeat_interleave(len(prompts) // 16, 0)], 1), 1.0

    def width(continuations: int) -> float:
        settings = dataclasses.replace(PROMPTED, steps=(1,), bootstrap=200, prompts=16, continuations=continuations)
        row = measured({"m": repeated}, settings=dataclasses.replace(settings, continuation_length=0)).rows[1]
        return row["gen_ppl_high"] - row["gen_ppl_low"]

    assert width(8) == pytest.approx(width(1))


def test_a_sampler_that_changes_its_prompts_is_named() -> None:
    def forgets(prompts: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        return continues(prompts.roll(1, 0), steps, seed)

    with pytest.raises(ValueError, match="'m' at 1 steps changed its prompts"):
        measured({"m": forgets}, HELD_OUT, settings=PROMPTED)


def test_prompts_scale_to_the_context() -> None:
    def lengths(settings: GenPplConfig, length: int) -> tuple[int, int]:
        fitted = settings.fitted(length)
        return fitted.prompt_length, fitted.continuation_length

    assert lengths(GenPplConfig(), 1024) == (50, 50)
    assert lengths(GenPplConfig(), 64) == (32, 32)
    assert lengths(GenPplConfig(prompt_length=10), 64) == (10, 50)
    assert lengths(GenPplConfig(prompt_length=60, continuation_length=2), 64) == (60, 2)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prompt_length": 64}, "prompt_length must be 1 to 63, .* got 64"),
        ({"prompt_length": 32, "continuation_length": 33}, "continuation_length must be 1 to 32, .*, got 33"),
    ],
)
def test_prompts_that_do_not_fit(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenPplConfig(**given).fitted(64)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"steps": (0,)}, "steps"),
        ({"steps": ()}, "steps"),
        ({"steps": (2, 2)}, "steps must be .*distinct"),
        ({"num_samples": 0}, "num_samples"),
        ({"evaluator_batch_size": 0}, "evaluator_batch_size"),
        ({"prompts": 1}, "prompts must be at least 2.* got 1"),
        ({"continuations": 0}, "continuations must be .*at least 1, got 0"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenPplConfig(**given)


def test_arguments_choose() -> None:
    arguments = [
        "run=outputs/a",
        "steps=[1,2,4]",
        "evaluator=gpt2-large",
        "num_samples=8",
        "conditional=true",
        "eos=mdlm",
    ]
    config = parse(GenPplConfig, arguments, program="di4c eval gen_ppl")
    assert (config.run, config.steps, config.evaluator) == ("outputs/a", (1, 2, 4), "gpt2-large")
    assert (config.num_samples, config.conditional, config.eos) == (8, True, "mdlm")


def test_help_lists_and_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(GenPplConfig, ["--help"], program="di4c eval gen_ppl")
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    for name, field in fields(GenPplConfig).items():
        assert any(line.startswith(f"  {name}=") and field.help in line for line in lines), name
        assert field.help, name


@pytest.mark.parametrize(
    "argument, told",
    [
        ("num_samples=0", ["num_samples", "0", "at least 2"]),
        ("num_samples=many", ["num_samples", "'many'", "whole number"]),
        ("samples=8", ["samples", "8", "num_samples"]),
        ("steps=[0]", ["steps", "0", "at least 1"]),
        ("steps=4", ["steps", "4"]),
        ("eos=last", ["eos", "'last'", "all, first, mdlm"]),
        ("conditional=perhaps", ["conditional", "'perhaps'", "true or false"]),
        ("prompts=1", ["prompts", "1", "at least 2"]),
        ("seed=-1", ["seed", "-1", "at least 0"]),
        ("loose", ["'loose'", "key=value"]),
    ],
)
def test_bad_arguments_end_with_status_2(argument: str, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(GenPplConfig, [argument], program="di4c eval gen_ppl")
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and all(part in error for part in told), error
