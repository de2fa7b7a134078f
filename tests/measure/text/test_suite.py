"""The suite cannot be fooled: canaries are flagged or ranked last, real text passes, and bad input is named."""

import dataclasses
from typing import Any

import pytest
import torch

from di4c_lm.core.compose import compose
from di4c_lm.measure.flow import Measured
from di4c_lm.measure.text import features as features_module
from di4c_lm.measure.text import suite as suite_module
from di4c_lm.measure.text.canaries import periodic, shuffled, tiled
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.samples import TextSamples
from di4c_lm.measure.text.suite import REAL, Bench, ReportConfig, measure_suite, split_held_out, suite_table
from tests.measure import markov
from tests.measure.text.toy_metric import EVEN

SETTINGS = ReportConfig(
    parts=("fluency", "diversity", "distribution"),
    steps=(4,),
    bootstrap=100,
    permutations=199,
    self_bleu_samples=8,
    mauve_seeds=(0, 1),
)
NUM = 64


def bench(reference: torch.Tensor, *evaluators: Evaluator, settings: ReportConfig = SETTINGS) -> Bench:
    shared: dict[str, Any] = {"tokenizer": markov.tokenizer(), "settings": settings, "progress": False}
    return Bench(**shared, evaluators=evaluators, encoder=markov.evaluator(), reference=reference)


def measure(*cells: TextSamples, settings: ReportConfig = SETTINGS) -> Measured:
    reference, real = split_held_out(markov.text(2 * NUM, seed=1), references=0, num_real=NUM, seed=0)
    return measure_suite(cells, real, bench(reference, markov.evaluator(), settings=settings))


def model(name: str, flat: float, *, num: int = NUM, seed: int = 2) -> TextSamples:
    return TextSamples(name=name, kind="model", tokens=markov.text(num, seed=seed, flat=flat), steps=4, nfe=4.0)


@pytest.fixture(scope="module")
def suite() -> Measured:
    real = markov.text(NUM, seed=3)
    canaries = [
        TextSamples(name="periodic", kind="canary", tokens=periodic(real, NUM, seed=0)),
        TextSamples(name="tiled", kind="canary", tokens=tiled(real, NUM)),
        TextSamples(name="shuffled", kind="canary", tokens=shuffled(real, NUM, seed=0)),
        TextSamples(name="float32", kind="canary", tokens=markov.text(NUM, seed=4), noise="float32"),
        TextSamples(name="truncating", kind="canary", tokens=markov.text(NUM, seed=5), tail={"tail_p": 1e-9}),
    ]
    return measure(model("good", 0.2), model("bad", 0.5), *canaries)


def _row(suite: Measured, name: str) -> dict:
    (row,) = [row for row in suite.rows if row["model"] == name]
    return row


@pytest.mark.parametrize(
    "canary, flag",
    [
        ("periodic", "near-duplicates"),
        ("tiled", "near-duplicates"),
        ("shuffled", "order"),
        ("float32", "noise is float32"),
        ("truncating", "rare tokens"),
    ],
)
def test_canaries_are_flagged_and_not_ranked(suite: Measured, canary: str, flag: str) -> None:
    row = _row(suite, canary)
    assert any(one.startswith(flag) for one in row["flags"]), row["flags"]
    assert row["rank"] is None and not suite.alarms


def test_distances_alone_see_the_canaries_too(suite: Measured) -> None:
    for canary in ("periodic", "tiled", "shuffled"):
        row = _row(suite, canary)
        assert row["gradient_moment_p"] <= 0.01 and row["gradient_moment_low"] > _row(suite, "good")["gradient_moment"]
    assert _row(suite, "tiled")["mauve"] < 0.5 * _row(suite, "good")["mauve"]


def test_real_against_real_passes_and_ranks_first(suite: Measured) -> None:
    row = _row(suite, REAL)
    assert row["flags"] == [] and row["rank"] == 1
    assert min(row[f"{name}_p"] for name in ("gradient_moment", "energy", "energy_hand")) > 0.01


def test_the_better_model_ranks_above_the_worse_and_the_difference_is_tested(suite: Measured) -> None:
    assert _row(suite, "good")["rank"] == 2 and not _row(suite, "good")["flags"]
    assert _row(suite, "bad")["rank"] in (3, None)
    tested = {one["metric"]: one for one in suite.comparisons}
    assert {"gen_ppl", "entropy", "order_gain", "gradient_moment", "energy", "energy_hand"} <= set(tested)
    assert (tested["gen_ppl"]["of"], tested["gen_ppl"]["minus"]) == ("bad", "good")
    for metric in ("gen_ppl", "gradient_moment"):
        assert tested[metric]["difference_low"] > 0 and tested[metric]["p_value"] <= 0.01


def test_distances_from_the_sequential_teacher_read_each_sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    encode = features_module.encode
    monkeypatch.setattr(features_module, "encode", lambda *a, **k: calls.append(len(a[1])) or encode(*a, **k))
    settings = dataclasses.replace(SETTINGS, parts=("distribution", "teacher"))
    reference, real = split_held_out(markov.text(2 * NUM, seed=1), references=0, num_real=NUM, seed=0)
    place = bench(reference, markov.evaluator(), settings=settings)
    teacher = markov.text(NUM, seed=8, flat=0.4)
    same, other = model("same", 0.4), model("other", 0.0, seed=3)
    found = measure_suite([same, other], real, dataclasses.replace(place, sequential=teacher))
    assert calls == [NUM] * 5  # the text, the reference, the teacher, and each model once
    assert _row(found, "same")["energy_teacher_p"] > 0.01 >= _row(found, "other")["energy_teacher_p"]
    assert _row(found, "same")["mauve_teacher"] > _row(found, "other")["mauve_teacher"]
    assert _row(found, "same")["energy_p"] <= 0.01 < _row(found, "other")["energy_p"]
    assert "energy_teacher" in {one["metric"] for one in found.comparisons}
    assert "mauve_teacher_sd" in _row(found, "same")
    without = measure_suite([same], real, place)
    assert "energy_teacher" not in _row(without, "same")


def test_counting_that_beats_a_model_is_named_in_its_row_and_in_the_table() -> None:
    fluent = dataclasses.replace(model("ngram_5", 0.0, seed=4), kind="baseline", steps=1, nfe=0.0)
    found = measure(model("bad", 0.5), fluent, settings=dataclasses.replace(SETTINGS, parts=("fluency", "diversity")))
    assert _row(found, "bad")["beaten_by"] == ["ngram_5"] and "beaten_by" not in _row(found, "ngram_5")
    assert "counting beats bad at every number of steps" in suite_table(vars(found) | {"detectable": []})


def test_the_quick_form_changes_what_nobody_set() -> None:
    assert compose(ReportConfig, []) == compose(ReportConfig, ["form=full"]) == ReportConfig()
    quick = compose(ReportConfig, ["form=quick", "num_samples=50", "seeds=[3]"])
    assert (quick.num_samples, quick.seeds, quick.steps, quick.temperatures) == (50, (3,), (1, 4, 16), (0.7, 1.0, 1.15))
    assert quick.permutations < ReportConfig().permutations and quick.parts == ReportConfig().parts


def test_a_metric_is_one_file_and_one_entry_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_module, "METRICS", (*suite_module.METRICS, EVEN))
    settings = dataclasses.replace(SETTINGS, parts=("diversity",), self_bleu_samples=0)
    found = measure(model("a", 0.2), model("b", 0.5), settings=settings)
    row = _row(found, "a")
    assert row["even_low"] <= row["even"] <= row["even_high"] and "entropy" in row and "gen_ppl" not in row
    assert [one["metric"] for one in found.comparisons] == ["entropy", "even"]


def test_what_stands_in_the_training_text_is_counted_where_that_is_known() -> None:
    settings = dataclasses.replace(SETTINGS, parts=("diversity",), self_bleu_samples=0)
    text = markov.text(NUM, seed=5)
    copy = TextSamples(name="copy", kind="model", tokens=text, steps=4, nfe=4.0)
    known = dataclasses.replace(bench(text, markov.evaluator(), settings=settings), training=text)
    rows = measure_suite([copy], markov.text(NUM, seed=6), known).rows
    assert [row["copied_8"] == 1 for row in rows] == [row["model"] == "copy" for row in rows]
    assert "copied_8" not in _row(measure(copy, settings=settings), "copy")


def test_a_canary_that_passes_raises_the_alarm() -> None:
    perfect = TextSamples(name="cheat", kind="canary", tokens=markov.text(NUM, seed=7))
    assert measure(model("bad", 0.3), perfect).alarms == ["cheat"]


def test_seeds_widen_the_interval_and_pool_the_samples() -> None:
    settings = dataclasses.replace(SETTINGS, parts=("fluency",))
    tokens = torch.cat([markov.text(NUM, seed=5), markov.text(NUM, seed=6, flat=0.6)])
    one, two = (TextSamples(name="x", kind="model", tokens=tokens, steps=4, seeds=seeds) for seeds in (1, 2))
    plain, nested = (_row(measure(cell, settings=settings), "x") for cell in (one, two))
    assert plain["gen_ppl"] == nested["gen_ppl"] and plain["num_samples"] == 2 * NUM
    assert nested["gen_ppl_high"] - nested["gen_ppl_low"] > 1.5 * (plain["gen_ppl_high"] - plain["gen_ppl_low"])


def test_each_evaluator_has_its_columns() -> None:
    reference, real = split_held_out(markov.text(2 * NUM, seed=1), references=0, num_real=NUM, seed=0)
    evaluator = markov.evaluator()
    other = dataclasses.replace(evaluator, name="some/where/other")
    settings = dataclasses.replace(SETTINGS, parts=("fluency",))
    found = measure_suite([], real, bench(reference, evaluator, other, settings=settings)).rows[0]
    assert found["gen_ppl@other"] == found["gen_ppl"] and found["gen_ppl_low@other"] == found["gen_ppl_low"]


@pytest.mark.parametrize(
    "tokens, told",
    [
        (torch.zeros(0, markov.LENGTH, dtype=torch.long), r"'x' gave samples of shape \(0, 32\)"),
        (torch.zeros(9, 0, dtype=torch.long), r"'x' gave samples of shape \(9, 0\)"),
        (torch.full((9, 5), 3), r"'x' gave samples of shape \(9, 5\), expected some of 32 tokens"),
        (torch.full((9, markov.LENGTH), markov.STATES + 2), "still holds 32 MASK tokens"),
    ],
)
def test_bad_samples_are_named(tokens: torch.Tensor, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        measure(TextSamples(name="x", kind="model", tokens=tokens, steps=4))


def test_a_evaluator_with_a_shorter_context_is_named() -> None:
    evaluator = markov.evaluator()
    config: Any = evaluator.model.config
    config.get_text_config = lambda: type("C", (), {"vocab_size": 43, "max_position_embeddings": 16})
    text = markov.text(NUM, seed=1)
    with pytest.raises(ValueError, match="32 tokens under the evaluator, which reads at most 16"):
        measure_suite([], text, bench(text, evaluator))
    with pytest.raises(ValueError, match="evaluators must hold at least one"):
        measure_suite([], text, bench(text))


@pytest.mark.parametrize("references, num", [(0, 15), (60, 64), (4, 64)])
def test_too_few_references_are_named(references: int, num: int) -> None:
    with pytest.raises(
        ValueError, match=f"references must leave at least 8 of the {num} validation sequences.*got {references}"
    ):
        split_held_out(markov.text(num, seed=0), references=references, num_real=8, seed=0)
