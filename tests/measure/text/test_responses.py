"""The report of a run on records with prompts: prompts are not scored, are continued, and the miniature of a recipe has one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.data.text.pairs import Filling
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.measure.text.likelihood import step_bound
from di4c_lm.runs import recipe
from di4c_lm.runs.evaluate import evaluate
from tests.measure.models import text_model
from tests.runs.prepare.test_features import TOKENIZER


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    replace(text_model(length=8), tokenizer=TOKENIZER).save_pretrained(folder / "teacher")
    records = [json.dumps({"prompt": "aa " * (n % 3 + 1), "response": "ab aa " + "ab " * (n % 4)}) for n in range(60)]
    (folder / "pairs.jsonl").write_text("\n".join(records))
    given = [f"teacher={folder / 'teacher'}", f"data={folder / 'pairs.jsonl'}", "data.records=prompt", "data.length=8"]
    small = ["mixture=class_chain", "mixture.codebook_size=3", "train.steps=2", "train.save_every=0", "run.device=cpu"]
    small += ["eval.steps=[1,3]", "eval.num_samples=20", "eval.bootstrap=50", f"run.dir={folder / 'run'}"]
    config = compose(TextSettings, [*given, *small, "data.validation_share=0.4"], CONFIGS, "text")
    assert recipe.run(DOMAIN, config) == 0
    return folder / "run"


def test_a_run_on_records_ends_with_their_report(run: Path) -> None:
    report = json.loads((run / "report" / "responses.json").read_text())
    rows = {(row["model"], row["steps"]): row for row in report["rows"]}
    assert set(rows) == {("data", 0), *((name, steps) for name in ("teacher", "student") for steps in (1, 3))}
    for row in report["rows"][1:]:
        assert row["response_ppl_low"] <= row["response_ppl"] <= row["response_ppl_high"] and row["nats"] > 0
        assert 0 <= row["tokens"] <= 7
    shown = report["examples"]
    assert all(one["prompt"].replace(" ", "").replace("aa", "") == "" and one["prompt"] for one in shown)
    assert (run / "report" / "responses.html").is_file()
    assert {one["metric"] for one in report["comparisons"]} == {"nats"}


def test_it_can_be_asked_for_again(run: Path, tmp_path: Path) -> None:
    found = evaluate(run, what="responses", steps=[2], num_samples=6, bootstrap=20, report=str(tmp_path))
    assert {row["steps"] for row in found["rows"]} == {0, 2} and found["rows"][0]["num_samples"] == 6


def test_the_bound_of_a_response_is_given_its_prompt_and_sees_no_padding() -> None:
    model = text_model(length=6)
    how: dict[str, Any] = {"steps": 1, "draws": 1, "lambdas": 1, "seed": 0}
    x, parts = torch.tensor([[2, 3, 2, 3, 0, 0]]), torch.tensor([[3, 3, 2, 2, 0, 0]])
    nats = step_bound(model, x, parts_ND=parts, **how)
    x_t = torch.tensor([[2, 3, 4, 4]])
    with torch.no_grad():
        log_p = model.denoiser(x_t, torch.ones(1)).log_probs()[0, 0]
    torch.testing.assert_close(nats[0], -(log_p[2, 2] + log_p[3, 3]).double(), rtol=1e-5, atol=1e-5)


def test_what_is_learned_of_a_record_alone_in_its_row() -> None:
    tokens, given = torch.tensor([[7, 7, 5, 5, 0, 0, 0, 0]]).numpy(), torch.tensor([2]).numpy()
    wanted = {
        Filling(): [3, 3, 2, 2, 2, 2, 2, 2],
        Filling(packing=True): [3, 3, 2, 2, 2, 0, 0, 0],
        Filling(buckets=(4, 6)): [3, 3, 2, 2, 2, 2, 0, 0],
    }
    for filling, parts in wanted.items():
        assert filling.parts_of(tokens, given, 0)[0].tolist() == parts
