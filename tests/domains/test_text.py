"""Text models: saved and loaded whole, prompted, and free of any influence of the batch size."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from di4c_lm.checkpoints.load import stated_length
from di4c_lm.core.compose import CONFIGS, compose, compose_rounds
from di4c_lm.data.batches import PackedSource
from di4c_lm.data.text.corpus import Corpus
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.domains.domain import FinishedRun
from di4c_lm.domains.text.domain import DOMAIN, TextData, compare, report
from di4c_lm.domains.text.model import TextModel, load_run
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.measure.text.gen_ppl import CompareConfig, GenPplConfig
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.runs import recipe
from di4c_lm.samplers.first_hitting import FirstHitting

MODEL = DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8)
COUNTED = ["ngram_2", "ngram_3", "ngram_5", "token_bigram"]
TEXTS = ["the cat sat on the mat and the dog sat on the log", "one two three four five six seven eight nine ten"] * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    tokenizer = load_tokenizer(DataConfig(vocab_size=300), TEXTS, tmp_path_factory.mktemp("tokenizer"))
    torch.manual_seed(0)
    denoiser = AdaLNSettings(distribution="codebook").fresh(DIT, MODEL, {"num_states": len(tokenizer)})
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return TextModel(denoiser=denoiser.eval(), tokenizer=tokenizer, length=12)


def test_what_is_saved_is_loaded_and_writes_the_same(model: TextModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = TextModel.from_pretrained(tmp_path)
    assert (again.length, len(again.tokenizer)) == (12, len(model.tokenizer))
    assert torch.equal(again.sample_tokens(5, 3, seed=1)[0], model.sample_tokens(5, 3, seed=1)[0])


def test_a_checkpoint_of_another_tokenizer_is_refused(model: TextModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    fewer = load_tokenizer(DataConfig(vocab_size=280), TEXTS, tmp_path / "280")
    with pytest.raises(
        ValueError, match=rf"its network has {len(model.tokenizer)} states, the tokenizer {len(fewer)} "
    ):
        TextModel.from_checkpoint(tmp_path, fewer)
    config = json.loads((tmp_path / "config.json").read_text())
    config["extra"]["tokenizer"] = "abc"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="trained with another tokenizer: fingerprint abc"):
        TextModel.from_pretrained(tmp_path)


def test_an_exported_head_writes_the_same_beside_its_teacher(model: TextModel, tmp_path: Path) -> None:
    teacher = TextModel(denoiser=model.denoiser.network, tokenizer=model.tokenizer, length=12)
    mixture = ClassChainSettings(codebook_size=3).over(teacher.denoiser, torch.Generator().manual_seed(0)).eval()
    student = TextModel(denoiser=mixture, tokenizer=model.tokenizer, length=12)
    teacher.save_pretrained(tmp_path / "teacher")
    student.save_pretrained(tmp_path / "head", backbone="../teacher")
    student.save_pretrained(tmp_path / "merged")
    expected = student.sample_tokens(5, 3, seed=1)[0]
    for name in ("head", "merged"):
        assert torch.equal(TextModel.from_pretrained(tmp_path / name).sample_tokens(5, 3, seed=1)[0], expected), name
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("head", "merged")]
    assert sizes[0] < sizes[1] / 2


def test_a_sample_depends_on_its_number_and_the_seed_alone(model: TextModel) -> None:
    whole, _ = model.sample_tokens(9, 4, seed=1, batch_size=9)
    parts, _ = model.sample_tokens(9, 4, seed=1, batch_size=2)
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, model.sample_tokens(9, 4, seed=2)[0])


def test_prompts_and_gaps_are_kept(model: TextModel) -> None:
    text = f"the cat{model.tokenizer.mask_token} on"
    x_init = model.encode_prompts([text, "one"], 3)
    assert x_init.shape == (6, 12)
    given = x_init != model.mask_id
    assert 0 < int(given[0].sum()) < 12
    tokens, nfe = model.sample_tokens(6, 2, seed=0, x_init=x_init)
    assert torch.equal(tokens[given], x_init[given])
    assert int(tokens.max()) < model.mask_id
    assert nfe <= 2


def test_a_prompt_longer_than_the_sequence_is_refused(model: TextModel) -> None:
    with pytest.raises(ValueError, match="exceeds the sequence of 12"):
        model.encode_prompts(["the cat sat on the mat " * 20], 1)


def test_rows_of_x_init_must_be_the_samples(model: TextModel) -> None:
    with pytest.raises(ValueError, match="x_init: expected 3 rows"):
        model.sample_tokens(3, 2, seed=0, x_init=torch.zeros(2, 12, dtype=torch.long))


def test_another_tokenizer_is_refused(model: TextModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    other = load_tokenizer(DataConfig(vocab_size=290), TEXTS, tmp_path)
    other.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="states"):
        TextModel.from_pretrained(tmp_path / "model")


def test_data_are_read_in_the_order_of_the_seed_that_asks(model: TextModel) -> None:
    """So that a cached teacher does not depend on the seed of the run that made it."""
    tokens = np.arange(80).reshape(20, 4)
    known: dict[str, Any] = {
        "name": "x",
        "validation": torch.zeros(1, 4).long(),
        "validation_texts": [],
        "fingerprint": "x",
    }
    data = TextData(corpus=Corpus(tokenizer=model.tokenizer, train=PackedSource(tokens, 1), **known), length=4)
    found: list[Any] = [data.source(seed) for seed in (0, 1)]
    for seed, source in enumerate(found):
        assert torch.equal(source.read(0, 20).x, PackedSource(tokens, seed).read(0, 20).x)
    assert not torch.equal(found[0].read(0, 20).x, found[1].read(0, 20).x)


def test_a_run_that_lacks_a_part_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match=r"no parts.json, student"):
        load_run(tmp_path)


# Runs

TINY = [
    "model.hidden_size=16",
    "model.num_blocks=2",
    "model.num_heads=2",
    "model.cond_dim=8",
    "data.length=16",
    "data.vocab_size=300",
    "mixture.codebook_size=4",
    "evaluator.hidden_size=16",
    "evaluator.num_blocks=1",
    "evaluator.num_heads=2",
    "evaluator.pretrain.steps=4",
    "train.micro_batch_size=2",
    "train.log_every=1",
    "train.steps=2",
    "eval.steps=[1,2]",
    "eval.num_samples=4",
    "eval.bootstrap=20",
    "run.device=cpu",
    "run.threads=1",
]
ROUNDS = "rounds=[{objective: mdlm, objective.bound_draws: 2}, {objective: likelihood, eval.skip: true}]"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "docs.jsonl"
    rows = [{"text": f"document {i}: " + " ".join(str(i * k % 97) for k in range(1, 40))} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(text: Path, folder: Path, *words: str) -> tuple[TextSettings, list[TextSettings]]:
    given = any(word.startswith("teacher=") for word in words)  # its shape is its own
    tiny = [word for word in TINY if not (given and word.startswith("model."))]
    own = [f"data={text}", *tiny, f"run.dir={folder}", *words]
    config = compose(TextSettings, own, CONFIGS, "text")
    return config, compose_rounds(config, own, CONFIGS, "text", folder)


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a chain of two rounds: MDLM, then a mixture fitted to data."""
    folder = tmp_path_factory.mktemp("runs") / "chain"
    assert recipe.run(DOMAIN, *settings(text, folder, ROUNDS)) == 0
    return folder


def test_a_chain_is_measured_side_by_side(finished: Path) -> None:
    report = json.loads((finished / "report" / "gen_ppl.json").read_text())
    assert list(dict.fromkeys(row["model"] for row in report["rows"])) == ["data", "mdlm", "likelihood", *COUNTED]
    assert set(report["manifest"]["checkpoints"]) == {"mdlm", "likelihood"}
    assert load_run(finished).evaluator == str(finished / "evaluator")


@pytest.mark.parametrize("stage", [0, 3])
def test_a_sequential_student_is_trained_resumed_measured_and_loaded(
    finished: Path, text: Path, tmp_path: Path, stage: int
) -> None:
    teacher, words = finished / "round_1" / "student", ["recipe=sequential", "mixture.layers=2", f"zero.stage={stage}"]
    words += [f"teacher={teacher}", "train.save_every=1", "train.steps=2", "train.micro_batch_size=2"]
    own = [word for word in TINY if not word.startswith(("mixture.", "model."))]
    folders = {name: tmp_path / name for name in ("whole", "cut")}
    for name, folder in folders.items():
        config = compose(TextSettings, [f"data={text}", *own, *words, f"run.dir={folder}"], CONFIGS, "text")
        if name == "cut":
            shutil.copytree(
                folders["whole"] / "checkpoints" / "step_00000001", folder / "checkpoints" / "step_00000001"
            )
        assert recipe.run(DOMAIN, config) == 0
    rows = json.loads((folders["whole"] / "report" / "gen_ppl.json").read_text())["rows"]
    assert {row["model"] for row in rows} == {"data", "teacher", "student", *COUNTED}
    states = [load_file(folder / "student" / "model.safetensors") for folder in folders.values()]
    assert all(name.startswith("latent_head.") for name in states[0]), "the teacher's weights stand once, in its folder"
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items()), "resumed, it is the same"
    assert any(bool(value.any()) for name, value in states[0].items() if name.endswith("out.weight"))
    student = TextModel.from_pretrained(folders["whole"] / "student")
    assert student.denoiser.settings.layers == 2
    assert torch.equal(student.sample_tokens(2, 2, seed=0)[0], student.sample_tokens(3, 2, seed=0, batch_size=1)[0][:2])


def test_the_bound_on_the_validation_set_is_reported(finished: Path) -> None:
    (row,) = json.loads((finished / "round_1" / "report" / "bound.json").read_text())["rows"]
    assert row["bound_ppl_low"] <= row["bound_ppl"] <= row["bound_ppl_high"]
    assert 20 < row["bound_ppl"] < 2000, "an untrained model of 300 tokens is near 300"


def test_models_are_compared_in_one_table(finished: Path, tmp_path: Path) -> None:
    models = (f"a={finished / 'round_1'}", str(finished / "round_2" / "student"))
    chosen = {"steps": (1,), "num_samples": 4, "bootstrap": 20, "report": str(tmp_path), "device": "cpu"}
    compare(CompareConfig(run=str(finished), models=models, **chosen))
    rows = json.loads((tmp_path / "gen_ppl.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["data", "a", "student", *COUNTED]


def test_the_report_samples_as_the_run_says(finished: Path, tmp_path: Path) -> None:
    """First hitting makes as many calls as there are tokens, be the steps few; a compared model is sampled alike."""
    run = FinishedRun.read(finished)
    run = dataclasses.replace(run, settings=dataclasses.replace(run.settings, sampler=FirstHitting()))
    chosen = GenPplConfig(steps=(1,), num_samples=2, bootstrap=20, report=str(tmp_path), device="cpu")
    for models in ((), (f"other={finished / 'round_2'}",)):
        report(run, chosen, models=models)
        found = json.loads((tmp_path / "gen_ppl.json").read_text())
        assert [row["nfe"] for row in found["rows"] if row["model"] not in ("data", *COUNTED)] == [16] * (
            1 if models else 2
        )
        assert found["manifest"]["sampler"] == "first_hitting"


@pytest.mark.parametrize(
    "word, message",
    [
        ("sampler=tau_leaping", "sampler=tau_leaping needs a chain on ordered levels, got MaskedProcess"),
        ("sampler=hybrid", "decoding.hybrid_last"),
        ("decoding.guidance=2", "where there are no classes"),
        ("sampler.eta=0.1", "sampler=remasking"),
    ],
)
def test_a_sampler_that_cannot_be_is_refused_before_anything_is_loaded(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compose(TextSettings, [word], CONFIGS, "text")


def test_a_report_of_a_run_without_one_trains_the_evaluator_then(finished: Path, tmp_path: Path) -> None:
    assert not (finished / "round_2" / "evaluator").exists()
    chosen = GenPplConfig(steps=(1,), num_samples=4, bootstrap=20, report=str(tmp_path), device="cpu")
    assert "student" in DOMAIN.report(FinishedRun.read(finished / "round_2"), chosen)
    assert (finished / "round_2" / "evaluator" / "config.json").exists()


def test_a_teacher_of_another_tokenizer_or_a_truncated_one_is_refused(
    finished: Path, text: Path, tmp_path: Path
) -> None:
    teacher = finished / "round_1" / "student"
    with pytest.raises(ValueError, match="tokenizer"):
        recipe.run(DOMAIN, settings(text, tmp_path / "run", f"teacher={teacher}", "data.vocab_size=290")[0])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    shutil.copytree(teacher, tmp_path / "teacher")
    weights = tmp_path / "teacher" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=str(weights)):
        recipe.run(DOMAIN, settings(text, tmp_path / "run", f"teacher={tmp_path / 'teacher'}")[0])


def test_a_given_teacher_brings_its_tokenizer_and_its_length(model: TextModel, tmp_path: Path) -> None:
    def data(*words: str) -> DataConfig:
        return compose(TextSettings, words, CONFIGS, "text").data

    model.save_pretrained(tmp_path / "run" / "student")
    for folder in (tmp_path / "run", tmp_path / "run" / "student"):
        found = data(f"teacher={folder}")
        assert (found.tokenizer, found.length) == (str(tmp_path / "run" / "student"), 12)
    said = data(f"teacher={tmp_path / 'run'}", "data.length=8", "data.tokenizer=gpt2")
    assert (said.tokenizer, said.length) == ("gpt2", 8)
    assert data(f"teacher={tmp_path / 'run'}", "data.vocab_size=300").tokenizer == "train"
    assert (data().tokenizer, data("teacher=random").length) == ("train", 64)
    (tmp_path / "run" / "student" / "tokenizer.json").unlink()
    assert data(f"teacher={tmp_path / 'run'}").tokenizer == "train"


@pytest.mark.parametrize(
    ("folder", "config", "length"),
    [
        ("mdlm", {"model_type": "mdlm", "model_length": 1024}, 1024),
        ("sdtt", {"model": {"n_blocks": 2, "length": 128}}, 128),
        ("none", {"length": "many"}, None),
    ],
)
def test_the_length_that_a_config_states(folder: str, config: dict, length: int | None, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    assert stated_length(tmp_path / folder) is None
    (tmp_path / folder / "config.json").write_text(json.dumps(config))
    assert stated_length(tmp_path / folder) == length
    (tmp_path / folder / "config.json").write_text("{")
    assert stated_length(tmp_path / folder) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=/absent/file.jsonl"], "/absent/file.jsonl"),
        (["teacher=/absent/folder"], "/absent/folder"),
        (["data=openwebtext"], "evaluator.path must be"),
    ],
)
def test_what_cannot_be_read_is_named(words: list[str], said: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        recipe.run(DOMAIN, settings(text, tmp_path, *words)[0])


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl"):
        recipe.run(DOMAIN, settings(tmp_path / "empty.jsonl", tmp_path / "run")[0])
