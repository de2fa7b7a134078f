"""Mixtures that are trained with their network: without a teacher, or held to its marginals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.model import TextModel
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.runs import recipe
from tests.measure.models import text_model
from tests.measure.tiny import gpt2, words

TOKENIZER = words("aa", "ab")
TOKENIZER.add_special_tokens({"bos_token": "<eos>"})  # as every corpus's has
MIXTURES = [
    "class_chain mixture.codebook_size=3",
    "sequential",
    "codes mixture.codebook_size=2",
    "codes mixture.codebook_size=2 objective=di4c",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, a tokenizer in a teacher's folder, and an evaluator."""
    folder = tmp_path_factory.mktemp("scratch")
    replace(text_model(length=8), tokenizer=TOKENIZER).save_pretrained(folder / "teacher")
    evaluator: Any = gpt2(vocabulary=len(TOKENIZER))
    evaluator.save_pretrained(folder / "evaluator")
    TOKENIZER.save_pretrained(folder / "evaluator")
    letters = torch.randint(2, (80, 12), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [" ".join(("aa", "ab")[letter] for letter in row) for row in letters]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def settings(place: Path, *more: str) -> TextSettings:
    said = [
        f"data={place / 'texts.jsonl'}",
        f"data.tokenizer={place / 'teacher'}",
        "data.length=8",
        "data.validation_share=0.3",
        f"evaluator={place / 'evaluator'}",
        f"run.cache_dir={place / 'cache'}",
        "run.device=cpu",
        "train.steps=30",
        "train.save_every=0",
        "optim.lr=1e-2",
        "eval.num_samples=8",
        "eval.steps=[1,2]",
        "eval.bootstrap=10",
    ]
    return compose(TextSettings, [*said, *more], CONFIGS, "text")


@pytest.mark.parametrize("mixture", MIXTURES)
def test_a_mixture_is_trained_with_its_network(place: Path, tmp_path: Path, mixture: str) -> None:
    small = ["model.hidden_size=16", "model.num_blocks=1", "model.num_heads=2"]
    said = f"mixture={mixture} mixture.freeze_backbone=false objective.init=scratch run.dir={tmp_path / 'run'}".split()
    config = settings(place, *small, *said)
    assert recipe.run(DOMAIN, config) == 0
    assert not (tmp_path / "run" / "teacher").exists()
    student = TextModel.from_pretrained(tmp_path / "run" / "student").denoiser
    assert student.has_latents and not student.shares_backbone
    data = DOMAIN.data(config, recipe.init_distributed("cpu"), place / "cache")
    fresh, trained = recipe.new_student(DOMAIN, config, data, None).denoiser, student.tensors()
    moved = {name for name, tensor in fresh.tensors().items() if not torch.equal(tensor, trained[name])}
    assert any(fresh.owns(name) for name in moved) and any(not fresh.owns(name) for name in moved)
    rows = json.loads((tmp_path / "run" / "report" / "gen_ppl.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"data", "student", "ngram_2", "ngram_3", "ngram_5"}


def test_joint_training_holds_the_marginals(place: Path, tmp_path: Path) -> None:
    """With a weight the student's network stays nearer to its teacher."""
    teacher, away = TextModel.from_pretrained(place / "teacher").denoiser, []
    x_t = torch.full((1, 8), teacher.mask_id)
    for weight in (0, 30):
        where = tmp_path / f"run-{weight}"
        said = ["mixture=sequential", "mixture.freeze_backbone=false", f"objective.marginal_weight={weight}"]
        config = settings(place, f"teacher={place / 'teacher'}", *said, "eval.skip=true", f"run.dir={where}")
        assert recipe.run(DOMAIN, config) == 0
        student = TextModel.from_pretrained(where / "student").denoiser
        p_1, p_2 = (one(x_t, torch.ones(1)).log_probs().exp() for one in (teacher, student))
        away.append(float((p_1 - p_2).detach().abs().sum(-1).mean()))
    assert away[1] < 0.5 * away[0]


@pytest.mark.parametrize(
    "said, message",
    [
        (["objective.init=scratch"], "mixture.freeze_backbone must be false where objective.init=scratch"),
        (["objective.init=scratch", "mixture.freeze_backbone=false", "teacher=somewhere"], "teacher"),
        (["recipe=di4c", "objective.init=scratch", "objective.teacher_step.steps=2"], "teacher_step.steps"),
        (["objective.init=scratch", "objective.marginal_weight=1"], "objective.marginal_weight must be 0 where init"),
    ],
)
def test_what_does_not_fit_is_named(said: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(TextSettings, said, CONFIGS, "text")
