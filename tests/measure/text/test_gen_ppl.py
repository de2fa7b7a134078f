import math

import numpy as np
import pytest
import torch
from torch import Tensor

from di4c_lm.domains.text.settings import EvalConfig
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.gen_ppl import measure, measure_conditional
from di4c_lm.measure.text.gen_ppl_settings import Prompting, Scoring
from di4c_lm.measure.text.perplexity import Document, score
from tests.measure.tiny import gpt2, letters, words

TOKENIZER = words(*"abcdefg")  # ids 2 to 8 are letters, 9 is MASK
EVALUATOR = Evaluator(model=gpt2(vocabulary=len(TOKENIZER)), tokenizer=TOKENIZER, name="tiny")
CONFIG = EvalConfig(steps=(1, 4), num_samples=12, batch_size=5, seed=3, bootstrap=50)
LENGTH = 6


def uniform(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
    rng = torch.Generator().manual_seed(100 * seed + steps)
    return torch.randint(2, 9, (num_samples, LENGTH), generator=rng), float(steps)


def constant(num_samples: int, steps: int, seed: int) -> tuple[Tensor, float]:
    return torch.full((num_samples, LENGTH), 2 + seed % 2), 0.5


HELD_OUT = uniform(20, 1, 9)[0]


def test_rows_are_those_of_the_interface() -> None:
    rows = measure(
        {"teacher": uniform, "student": constant},
        HELD_OUT,
        tokenizer=TOKENIZER,
        evaluator=EVALUATOR,
        config=CONFIG,
        progress=False,
    ).rows
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


def test_a_row_is_the_perplexity_of_what_was_sampled() -> None:
    found = measure(
        {"m": uniform}, HELD_OUT, tokenizer=TOKENIZER, evaluator=EVALUATOR, config=CONFIG, progress=False
    ).rows[2]
    texts = [Document(ids=tuple(ids)) for ids in uniform(12, 4, CONFIG.seed)[0].tolist()]
    scores = score(EVALUATOR.model, texts, batch_size=1)
    assert found["gen_ppl"] == pytest.approx(math.exp(scores.nll.sum() / scores.tokens.sum()))
    assert found["gen_ppl_doc"] == pytest.approx(math.exp((scores.nll / scores.tokens).mean()))


def test_real_against_real_does_not_differ_and_constant_does() -> None:
    found = measure(
        {"a": uniform, "b": uniform, "c": constant},
        HELD_OUT,
        tokenizer=TOKENIZER,
        evaluator=EVALUATOR,
        config=CONFIG,
        progress=False,
    ).comparisons
    p = {(c["of"], c["minus"], c["steps"], c["metric"]): c["p_value"] for c in found}
    assert len(p) == 3 * 2 * 2
    assert p["b", "a", 4, "gen_ppl"] == 1.0  # the same seed gave the same samples
    assert p["c", "a", 4, "entropy"] == pytest.approx(1 / 51)


def test_fewer_held_out_sequences_are_all_used() -> None:
    found = measure(
        {"m": uniform}, HELD_OUT[:7], tokenizer=TOKENIZER, evaluator=EVALUATOR, config=CONFIG, progress=False
    )
    assert [r["num_samples"] for r in found.rows] == [7, 12, 12]


def test_a_evaluator_with_another_tokenizer_reads_the_text() -> None:
    tokenizer = letters()
    evaluator = Evaluator(model=gpt2(vocabulary=len(tokenizer), scale=0.0), tokenizer=tokenizer, name="letters")
    found = measure({"m": uniform}, HELD_OUT, tokenizer=TOKENIZER, evaluator=evaluator, config=CONFIG, progress=False)
    assert all(r["gen_ppl"] == pytest.approx(len(tokenizer)) for r in found.rows)  # it is uniform
    assert found.rows[0]["judge_tokens"] == 12 * (2 * LENGTH - 2)  # letters, a space between each two, less the first


def test_scoring_rules_reach_the_evaluator() -> None:
    evaluator = Evaluator(model=gpt2(vocabulary=len(TOKENIZER), context=4), tokenizer=TOKENIZER, name="short")
    common = {"tokenizer": TOKENIZER, "evaluator": evaluator, "config": CONFIG, "progress": False}
    with pytest.raises(ValueError, match="6 tokens under the evaluator, which reads at most 4"):
        measure({"m": uniform}, HELD_OUT, **common)
    cut = measure({"m": uniform}, HELD_OUT, scoring=Scoring(overflow="truncate", batch_size=2), **common)
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
        measure({"m": sampler}, HELD_OUT, tokenizer=TOKENIZER, evaluator=EVALUATOR, config=CONFIG, progress=False)


def test_impossible_requests_are_named() -> None:
    common = {"tokenizer": TOKENIZER, "evaluator": EVALUATOR, "config": CONFIG, "progress": False}
    with pytest.raises(ValueError, match="1 held-out sequences are too few"):
        measure({"m": uniform}, HELD_OUT[:1], **common)
    with pytest.raises(ValueError, match="'data'"):
        measure({"data": uniform}, HELD_OUT, **common)


PROMPTING = Prompting(prompts=4, continuations=3, prompt_length=2, continuation_length=3)


def continues(prompts: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
    tokens = uniform(len(prompts), steps, seed)[0]
    return torch.cat([prompts, tokens[:, prompts.shape[1] :]], 1), float(steps)


def test_conditional_scores_continuations_given_prompts() -> None:
    seen: list[Tensor] = []

    def sampler(prompts: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        tokens, nfe = continues(prompts, steps, seed)
        seen.append(tokens)
        return tokens, nfe

    rows = measure_conditional(
        {"m": sampler},
        HELD_OUT,
        tokenizer=TOKENIZER,
        evaluator=EVALUATOR,
        config=CONFIG,
        prompting=PROMPTING,
        progress=False,
    ).rows
    assert [r["num_samples"] for r in rows] == [4, 12, 12]
    texts = [Document(ids=tuple(ids), context=2) for ids in seen[0][:, :5].tolist()]
    scores = score(EVALUATOR.model, texts, batch_size=4)
    assert rows[1]["gen_ppl"] == pytest.approx(math.exp(scores.nll.sum() / scores.tokens.sum()))
    assert rows[1]["judge_tokens"] == 12 * 3
    prompts = seen[0][:, :2].reshape(4, 3, 2)
    assert (prompts == prompts[:, :1]).all()  # neighbours share a prompt
    entropies = [-sum(c * math.log(c) for c in np.unique(t, return_counts=True)[1] / 3) for t in seen[0][:, 2:5]]
    assert rows[1]["entropy"] == pytest.approx(np.mean(entropies))


def test_conditional_intervals_resample_prompts() -> None:
    """Continuations that repeat each other add no information: the interval must stay as wide as with one."""

    def repeated(prompts: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        own = torch.randint(2, 9, (16, LENGTH - 2), generator=torch.Generator().manual_seed(seed))
        return torch.cat([prompts, own.repeat_interleave(len(prompts) // 16, 0)], 1), 1.0

    def width(continuations: int) -> float:
        row = measure_conditional(
            {"m": repeated},
            HELD_OUT,
            tokenizer=TOKENIZER,
            evaluator=EVALUATOR,
            config=EvalConfig(steps=(1,), num_samples=2, bootstrap=200),
            prompting=Prompting(prompts=16, continuations=continuations, prompt_length=2),
            progress=False,
        ).rows[1]
        return row["gen_ppl_high"] - row["gen_ppl_low"]

    assert width(8) == pytest.approx(width(1))


def test_a_sampler_that_changes_its_prompts_is_named() -> None:
    def forgets(prompts: Tensor, steps: int, seed: int) -> tuple[Tensor, float]:
        return continues(prompts.roll(1, 0), steps, seed)

    with pytest.raises(ValueError, match="'m' at 1 steps changed its prompts"):
        measure_conditional(
            {"m": forgets},
            HELD_OUT,
            tokenizer=TOKENIZER,
            evaluator=EVALUATOR,
            config=CONFIG,
            prompting=PROMPTING,
            progress=False,
        )
