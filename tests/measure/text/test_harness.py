"""The lm-evaluation-harness on tiny models: scores against calls made by hand, and a local task from end to end."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.measure.text.harness import HarnessConfig, Scorer, harness_report
from di4c_lm.measure.text.samples import TextRun
from di4c_lm.processes.uniform import UniformProcess
from tests.measure.models import text_model

LENGTH, EOS, AA, AB, MASK = 6, 0, 2, 3, 4


def at(model: Any, seen: list[int], token: int) -> float:
    """log p of the token that stands next, all behind it hidden."""
    x = torch.full((1, LENGTH), MASK)
    x[0, : len(seen)] = torch.tensor(seen)
    return float(model.logits(x)[0, len(seen), token])


@pytest.mark.parametrize("codes", [0, 3])
def test_the_chain_rule_goes_from_left_to_right_one_position_a_call(codes: int) -> None:
    model = text_model(codes=codes, length=LENGTH)
    (found, greedy), (other, _) = Scorer(model=model).log_likelihoods([("aa", " ab aa"), ("aa ab ", "aa")])
    first, second = at(model, [EOS, AA], AB), at(model, [EOS, AA, AB], AA)
    assert found == pytest.approx(first + second, abs=1e-5) and other == pytest.approx(second, abs=1e-5)
    likeliest = [max(range(5), key=lambda v: at(model, seen, v)) for seen in ([EOS, AA], [EOS, AA, AB])]
    assert greedy == (likeliest == [AB, AA])


def test_in_one_call_the_tokens_of_a_mixture_go_together() -> None:
    model = text_model(codes=3, length=LENGTH, scale=1.5)
    x_t = torch.tensor([[EOS, AA, MASK, MASK, MASK, MASK]])
    x_0 = torch.tensor([[EOS, AA, AB, AA, MASK, MASK]])
    ((found, _),) = Scorer(model=model, scoring="one_call").log_likelihoods([("aa", " ab aa")])
    assert found == pytest.approx(float(model.log_prob(x_0, x_t)), abs=1e-5)
    product = sum(float(model.logits(x_t)[0, place, token]) for place, token in ((2, AB), (3, AA)))
    assert abs(found - product) > 1e-3


def test_batches_do_not_change_scores() -> None:
    requests = [("aa ab", " aa"), ("", "ab ab"), ("ab", " aa ab aa")]
    every = [Scorer(model=text_model(length=LENGTH), batch_size=size).log_likelihoods(requests) for size in (1, 32)]
    assert [one for one, _ in every[0]] == pytest.approx([one for one, _ in every[1]], abs=1e-5)


def test_a_long_context_loses_its_beginning_and_a_long_continuation_is_refused() -> None:
    scorer = Scorer(model=text_model(length=LENGTH))
    ((cut, _), (short, _)) = scorer.log_likelihoods([("aa aa ab ab aa ab ab", " aa"), ("ab ab aa ab ab", " aa")])
    assert cut == pytest.approx(short)
    with pytest.raises(ValueError, match="continuation of 6 tokens exceeds 5: 'aa aa"):
        scorer.log_likelihoods([("ab", "aa aa aa aa aa aa")])


def test_whole_texts_are_scored_in_windows_each_token_once() -> None:
    model = text_model(length=LENGTH)
    ids = [AA, AB, AB, AA, AB, AA, AA]
    text = " ".join({AA: "aa", AB: "ab"}[token] for token in ids)
    expected = sum(at(model, [EOS, *ids[:i]], ids[i]) for i in range(5))
    expected += sum(at(model, ids[1:5] + ids[5:i], ids[i]) for i in (5, 6))
    assert Scorer(model=model).rolling([text]) == [pytest.approx(expected, abs=1e-5)]


def test_texts_end_at_what_they_are_told_to_end_at() -> None:
    seeds = [Scorer(model=text_model(length=LENGTH, scale=0.1), steps=1, seed=seed) for seed in range(12)]
    how = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 3}
    whole = [one.continuations([("aa", how)])[0] for one in seeds]
    cut = [one.continuations([("aa", {**how, "until": ["ab"]})])[0] for one in seeds]
    assert cut == [text.partition("ab")[0] for text in whole] and cut != whole
    assert max(len(text.split()) for text in whole) == 3 and not any("eos" in text for text in whole)
    assert (
        len({one.continuations([("aa", {"until": "", "max_gen_toks": 3})])[0] for one in seeds}) == 1
    )  # the likeliest


def test_a_model_of_uniform_noise_is_refused() -> None:
    class Uniform:
        process = UniformProcess(5)

        @property
        def mask_id(self) -> int:
            raise ValueError("model must be of masked noise")

    with pytest.raises(ValueError, match="masked noise"):
        Scorer(model=Uniform())


def run_of(folder: Path) -> TextRun:
    models = {"teacher": text_model(length=LENGTH), "student": text_model(codes=3, length=LENGTH, seed=1)}
    place: dict[str, Any] = {"settings": {}, "folder": folder, "evaluator": ""}
    paths = {name: folder / name for name in models}
    return TextRun(models=models, paths=paths, validation=torch.zeros(2, LENGTH, dtype=torch.long), **place)


def local_tasks(folder: Path) -> None:
    lines = [{"question": "aa ab", "choices": ["aa", "ab"], "label": i % 2, "answer": "aa"} for i in range(4)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = f"""
dataset_path: json
dataset_kwargs:
  data_files:
    validation: {folder / "lines.jsonl"}
validation_split: validation
doc_to_text: "{{{{question}}}}"
"""
    choice = """
task: toy_choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - metric: acc
"""
    written = """
task: toy_written
output_type: generate_until
doc_to_target: answer
generation_kwargs:
  until: ["ab"]
  max_gen_toks: 2
metric_list:
  - metric: bleu
"""
    (folder / "choice.yaml").write_text(choice + shared)
    (folder / "written.yaml").write_text(written + shared)


def test_local_tasks_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    local_tasks(tmp_path)
    run = run_of(tmp_path)
    settings = HarnessConfig(tasks=("toy_choice", "toy_written"), include=str(tmp_path), steps=2, device="cpu")
    table = harness_report(run, settings)
    rows = json.loads((tmp_path / "report" / "harness.json").read_text())["rows"]
    assert {(row["model"], row["task"]) for row in rows} == {
        (model, task) for model in ("teacher", "student") for task in ("toy_choice", "toy_written")
    }
    choice = next(row for row in rows if (row["model"], row["metric"]) == ("teacher", "acc"))
    # every other line is right, whichever answer the model prefers
    assert choice["value"] == 0.5 and choice["examples"] == 4 and choice["error"] > 0
    assert "toy_choice" in table and str(tmp_path / "report" / "harness.json") in table


@pytest.mark.slow  # the package's own tasks are listed
def test_a_task_that_there_is_not_is_named(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    local_tasks(tmp_path)
    settings = HarnessConfig(tasks=("toy_choice", "nonesuch"), include=str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="tasks must be names of tasks .* got nonesuch"):
        harness_report(run_of(tmp_path), settings)


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "di4c_lm.measure.text.harness_model", raising=False)
    with pytest.raises(ValueError, match="needs the package lm_eval .the extra `harness`."):
        harness_report(run_of(tmp_path), HarnessConfig(tasks=("toy",)))
    with pytest.raises(ValueError, match="tasks must be one or more names of tasks"):
        harness_report(run_of(tmp_path), HarnessConfig())
