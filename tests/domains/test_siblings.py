"""Folders of the formats that share MDLM's names, with a tokenizer: probabilities, samples, and a student of Duo's uniform noise."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import di4c_lm
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.model import TextModel
from di4c_lm.processes.uniform import UniformProcess
from di4c_lm.runs import recipe, sample
from di4c_lm.runs.folder import parse_run
from di4c_lm.runs.preflight import faults
from tests.checkpoints.siblings import KINDS, LENGTH, STATES, probabilities, write_sibling

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i"]


def folder_of(path: Path, kind: str) -> Path:
    """A small checkpoint and a tokenizer of nine words, EOS and MASK."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate([*WORDS, "<|endoftext|>"])}, "<|endoftext|>")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "mask_token": "<|mask|>"})
    write_sibling(path, kind)
    tokenizer.save_pretrained(str(path))
    return path


@pytest.fixture(scope="module")
def duo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("siblings") / "duo", "duo")


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_of_a_folder(tmp_path: Path, kind: str) -> None:
    model = di4c_lm.load(folder_of(tmp_path / kind, kind))
    x_t = torch.randint(STATES, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.3, 0.6, 1.0])
    found_BDS, expected_BDS = model.logits(x_t, t), probabilities(kind, x_t, t).float()
    assert found_BDS.shape == (3, LENGTH, STATES) and found_BDS.dtype == torch.float32
    torch.testing.assert_close(found_BDS.exp().sum(-1), torch.ones(3, LENGTH))
    if kind == "duo":  # the tokenizer's mask is in no text, though noise may make it
        assert bool((found_BDS[..., -1] == -torch.inf).all())
        expected_BDS[..., -1] = 0
        expected_BDS /= expected_BDS.sum(-1, keepdim=True)
    unknown_BD = model.process.unknown(x_t)
    torch.testing.assert_close(found_BDS[unknown_BD].exp(), expected_BDS[unknown_BD], atol=1e-5, rtol=1e-4)
    if kind == "duo":
        with pytest.raises(ValueError, match="t must be given where the process does not mask"):
            model.logits(x_t)
    else:
        assert model.logits(x_t).shape == found_BDS.shape


@pytest.mark.parametrize("kind", KINDS)
def test_it_samples(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / kind, kind)
    model = di4c_lm.load(folder)
    tokens_ND, nfe = model.sample_tokens(5, 4, seed=0)
    assert tokens_ND.shape == (5, LENGTH) and nfe <= 4
    assert int(tokens_ND.max()) < STATES - 1
    again_ND = model.sample_tokens(5, 4, seed=0, batch_size=2)[0]
    assert torch.equal(tokens_ND, again_ND)
    assert len(model.sample(2, steps=3)) == 2
    assert sample.main([f"model={folder}", "steps=2", "num_samples=2", "--show-steps"]) == 0
    assert "step   2" in capsys.readouterr().out


def test_samples_of_one_step_follow_the_prediction(duo: Path) -> None:
    """From noise to 0 in one step each position is a sample of p(x_0 | x_t)."""
    model = di4c_lm.load(duo)
    x_1 = torch.tensor([[3, 0, 7, 7, 10, 1]])
    x_0, _ = model.sample_tokens(4000, 1, seed=3, x_init=x_1.expand(4000, -1), batch_size=2000)
    p_DS = probabilities("duo", x_1, torch.ones(1))[0, :, :-1]
    p_DS /= p_DS.sum(-1, keepdim=True)
    share_DS = torch.nn.functional.one_hot(x_0, STATES - 1).double().mean(0)
    assert float((share_DS - p_DS).abs().max()) < 0.04


def test_what_uniform_noise_cannot_do_is_named(duo: Path) -> None:
    model: TextModel = di4c_lm.load(duo)
    assert isinstance(model.process, UniformProcess) and not model.masks
    with pytest.raises(ValueError, match="model must be of masked noise where positions are hidden"):
        model.sample(1, prompt="a b")
    with pytest.raises(ValueError, match="sampler=confidence needs a masked process, got UniformProcess"):
        model.sample(1, sampler="confidence")
    with pytest.raises(ValueError, match="predictor_corrector needs a masked process or a chain on ordered levels"):
        model.sample(1, sampler="predictor_corrector")
    with pytest.raises(ValueError, match="grid must be one of"):
        model.sample(1, grid="optimised")
    with pytest.raises(ValueError, match="noise must be exact"):
        model.sample(1, noise="legacy_fp32")


def settings_of(tmp_path: Path, teacher: Path, *more: str) -> Any:
    texts = tmp_path / "texts.jsonl"
    rng = random.Random(0)
    lines = (" ".join(rng.choices(WORDS, k=8)) for _ in range(200))
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    given = f"data.tokenizer={teacher}" if "objective=denoising" in more else f"teacher={teacher}"
    words = f"""{given} data={texts} data.length={LENGTH} train.steps=3 train.micro_batch_size=4 train.log_every=1
        run.device=cpu run.threads=1 run.cache_dir={tmp_path / "cache"} run.dir={tmp_path / "run"} eval.skip=true"""
    return parse_run(DOMAIN, [*words.split(), *more], program="test")[0]


@pytest.mark.parametrize(
    "words",
    [
        ("recipe=copula", "mixture.codebook_size=3"),
        ("recipe=copula", "mixture.codebook_size=3", "train.dtype=bfloat16"),
        ("objective=di4c", "mixture=token", "objective.num_lambdas=2"),
        ("objective=di4c", "mixture=codes", "mixture.codebook_size=3"),
        ("objective=likelihood", "mixture=adaln", "objective.num_lambdas=2"),
        (
            "objective=denoising",
            "model={process: uniform, time_conditioning: true, hidden_size: 16, num_blocks: 1, num_heads: 2}",
        ),
    ],
)
def test_a_student_of_uniform_noise_is_trained_and_samples(tmp_path: Path, duo: Path, words: tuple[str, ...]) -> None:
    settings = settings_of(tmp_path, duo, *words)
    assert recipe.run(DOMAIN, settings) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) >= 3 and all(loss == loss for loss in losses)
    student = di4c_lm.load(tmp_path / "run")
    assert isinstance(student.process, UniformProcess) and student.denoiser.has_latents is (
        words[0] != "objective=denoising"
    )
    tokens_ND, _ = student.sample_tokens(4, 2, seed=0)
    assert int(tokens_ND.max()) < STATES - 1


@pytest.mark.parametrize(
    "words, complaint",
    [
        (
            ("objective=sdtt",),
            "objective must be one of likelihood, di4c, denoising where the teacher's noise is uniform, got 'sdtt'",
        ),
        (
            ("objective=mdlm", "objective.init=teacher"),
            "objective must be one of .* where the teacher's noise is uniform, got 'mdlm'",
        ),
        (
            ("recipe=sequential",),
            "mixture must be one of .*class_chain where the teacher's noise is uniform, got 'sequential'",
        ),
        (("recipe=copula", "sampler=confidence"), "sampler=confidence needs a masked process, got UniformProcess"),
    ],
)
def test_what_asks_for_masks_is_refused_before_anything_is_built(
    tmp_path: Path, duo: Path, words: tuple[str, ...], complaint: str
) -> None:
    settings = settings_of(tmp_path, duo, *words)
    assert any(re.search(complaint, fault) for fault in faults(DOMAIN, settings)), faults(DOMAIN, settings)
    assert not (tmp_path / "run").exists()


def test_a_uniform_teacher_is_not_trained_by_the_masked_objective(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        settings_of(tmp_path, Path("train"), "model.process=uniform", "model.time_conditioning=true")
    assert "objective=denoising trains such a model" in capsys.readouterr().err


def test_texts_of_the_tokenizer(duo: Path) -> None:
    assert set(" ".join(di4c_lm.load(duo).sample(3, steps=2)).split()) <= {*WORDS, "<|endoftext|>"}
