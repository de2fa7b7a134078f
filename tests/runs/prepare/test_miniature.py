"""Miniatures of large teachers, and the recipes for those on them: train, export, sample."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import di4c_lm
from di4c_lm.checkpoints.load import read_checkpoint
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.runs import recipe, sample
from di4c_lm.runs.folder import parse_run
from di4c_lm.runs.prepare.miniature import Settings, main

RECIPES = {"llada": "llada_8b", "dream": "dream_7b", "a2d": "a2d_qwen"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each kind one, of few rows."""
    found = tmp_path_factory.mktemp("miniatures")
    for kind in RECIPES:
        assert main([f"kind={kind}", f"out={found / kind}", "rows=600"]) == 0
    return found


@pytest.mark.parametrize("kind", RECIPES)
def test_a_miniature_has_the_layers_of_its_format(folder: Path, kind: str) -> None:
    weights = read_checkpoint(folder / kind)
    model = weights.model
    assert (weights.sizes["num_rows"], model.hidden_size, model.num_blocks) == (600, 64, 2)
    assert (model.shift, model.qkv_bias, model.qk_norm, model.tied) == {
        "llada": (False, False, False, False),
        "dream": (True, True, False, False),
        "a2d": (False, False, True, True),
    }[kind]
    assert Settings(kind="llada", out="x").rows is None


@pytest.mark.parametrize("kind, experiment", RECIPES.items())
def test_the_recipe_for_the_large_one_runs_on_it(
    folder: Path, tmp_path: Path, kind: str, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"""experiment={experiment} teacher={folder / kind} data={folder / kind / "chats.jsonl"} data.length=64
        mixture.codebook_size=4 train.steps=2 train.micro_batch_size=2 run.device=cpu run.threads=1 run.dir={tmp_path / "run"}
        eval.steps=[2] eval.num_samples=4 eval.bootstrap=20"""
    settings: Any = parse_run(DOMAIN, words.split(), program="test")[0]
    mask_id = di4c_lm.load(folder / kind).mask_id
    assert (settings.data.records, settings.data.mask_id, settings.train.dtype) == ("chat", mask_id, "bfloat16")
    assert recipe.run(DOMAIN, settings) == 0
    assert "What is" in (tmp_path / "run" / "report" / "responses.html").read_text()
    student = di4c_lm.load(tmp_path / "run")
    teacher = di4c_lm.load(folder / kind).denoiser.state_dict()
    assert all(torch.equal(student.denoiser.network.state_dict()[name], teacher[name]) for name in teacher)
    how = "steps=2 num_samples=1 length=48 chat=true sampler=blocks sampler.block=16 sampler.ahead=true sampler.inner=confidence"
    assert sample.main([f"model={tmp_path / 'run'}", *how.split(), "prompt=What is 3 and 4?"]) == 0
    said = capsys.readouterr().out
    assert "<|role|>user\nWhat is 3 and 4?<|end|><|role|>assistant" in said and "<|mask|>" not in said


def test_the_same_seed_gives_the_same(folder: Path, tmp_path: Path) -> None:
    assert main(["kind=llada", f"out={tmp_path / 'again'}", "rows=600"]) == 0
    for name in ("model.safetensors", "tokenizer.json", "chats.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / "llada" / name).read_bytes()
    messages = json.loads((folder / "llada" / "chats.jsonl").read_text().splitlines()[0])["messages"]
    assert [one["role"] for one in messages] == ["user", "assistant"]


@pytest.mark.parametrize(
    "word, complaint",
    [
        ("out=", "out must be a folder"),
        ("rows=20", "rows must be at least 515"),
        ("hidden_size=20", "a multiple of 16"),
    ],
)
def test_bad_input(word: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([word])
    assert complaint in capsys.readouterr().err
