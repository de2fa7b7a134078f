"""Text models: saved and loaded whole, prompted, and free of any influence of the batch size."""

import json
from pathlib import Path

import pytest
import torch

from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.domains.text.model import TextModel, load_run
from di4c_lm.domains.text.settings import DataConfig
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig

MODEL = DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8)
TEXTS = ["the cat sat on the mat and the dog sat on the log", "one two three four five six seven eight nine ten"] * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    tokenizer = load_tokenizer(DataConfig(vocab_size=300), TEXTS, tmp_path_factory.mktemp("tokenizer"))
    torch.manual_seed(0)
    denoiser = DIT(MODEL, num_states=len(tokenizer), latent=LatentConfig(law="codebook", path="adaln"))
    for parameter in denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return TextModel(denoiser=denoiser.eval(), tokenizer=tokenizer, length=12)


def test_what_is_saved_is_loaded_and_writes_the_same(model: TextModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = TextModel.from_pretrained(tmp_path)
    assert (again.length, len(again.tokenizer)) == (12, len(model.tokenizer))
    assert torch.equal(again.sample(5, 3, seed=1)[0], model.sample(5, 3, seed=1)[0])


def test_a_sample_depends_on_its_number_and_the_seed_alone(model: TextModel) -> None:
    whole, _ = model.sample(9, 4, seed=1, batch_size=9)
    parts, _ = model.sample(9, 4, seed=1, batch_size=2)
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, model.sample(9, 4, seed=2)[0])


def test_prompts_and_gaps_are_kept(model: TextModel) -> None:
    text = f"the cat{model.tokenizer.mask_token} on"
    x_init = model.encode_prompts([text, "one"], 3)
    assert x_init.shape == (6, 12)
    given = x_init != model.process.mask_id
    assert 0 < int(given[0].sum()) < 12
    tokens, nfe = model.sample(6, 2, seed=0, x_init=x_init)
    assert torch.equal(tokens[given], x_init[given])
    assert int(tokens.max()) < model.process.mask_id
    assert nfe <= 2


def test_a_prompt_longer_than_the_sequence_is_refused(model: TextModel) -> None:
    with pytest.raises(ValueError, match="exceeds the sequence of 12"):
        model.encode_prompts(["the cat sat on the mat " * 20], 1)


def test_rows_of_x_init_must_be_the_samples(model: TextModel) -> None:
    with pytest.raises(ValueError, match="x_init: expected 3 rows"):
        model.sample(3, 2, seed=0, x_init=torch.zeros(2, 12, dtype=torch.long))


def test_another_tokenizer_is_refused(model: TextModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    other = load_tokenizer(DataConfig(vocab_size=290), TEXTS, tmp_path)
    other.save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="states"):
        TextModel.from_pretrained(tmp_path / "model")


def test_a_run_that_lacks_a_part_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "parts.json").write_text(json.dumps({"teacher": "x", "judge": "y"}))
    with pytest.raises(ValueError, match=r"no validation.safetensors, student"):
        load_run(tmp_path)
