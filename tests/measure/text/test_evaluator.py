import dataclasses
import json
from pathlib import Path

import pytest
import torch

from di4c_lm.measure.text.evaluator import EvaluatorConfig, cache_key, load_evaluator, train_evaluator
from di4c_lm.measure.text.perplexity import Document, score
from di4c_lm.training.settings import PretrainConfig
from tests.measure.tiny import words

TOKENIZER = words("a", "b", "c", "d")
TOKENS = torch.tensor([[2, 3, 4, 5, 2, 3, 4, 5]]).repeat(12, 1)
CONFIG = EvaluatorConfig(
    hidden_size=16, num_blocks=1, num_heads=2, pretrain=PretrainConfig(steps=60, batch_size=5, lr=1e-2)
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    train_evaluator(TOKENS, TOKENIZER, CONFIG, cache_dir=folder, progress=False)
    return folder


def entry(cache: Path) -> Path:
    return cache / "evaluators" / cache_key(TOKENS, TOKENIZER, CONFIG)


def test_it_learns_its_text(cache: Path) -> None:
    evaluator = load_evaluator(str(entry(cache)))
    assert not evaluator.model.training
    nll, _ = score(evaluator.model, [Document(ids=(2, 3, 4, 5)), Document(ids=(2, 2, 2, 2))], batch_size=2)
    assert nll[0] / 3 < 0.3 < 2.0 < nll[1] / 3
    assert json.loads((entry(cache) / "evaluator.json").read_text())["final_train_loss"] < 1.0


def test_the_cache_is_used_and_gives_the_same_evaluator(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.optim.AdamW", None)  # training again would fail
    again = train_evaluator(TOKENS, TOKENIZER, CONFIG, cache_dir=cache, progress=False)
    saved = load_evaluator(str(entry(cache)))
    for name, weight in saved.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name])
    assert again.tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert [p.name for p in (cache / "evaluators").iterdir()] == [entry(cache).name]  # nothing left beside


def test_the_same_seed_trains_the_same_evaluator_and_leaves_the_global_generator(cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    other = train_evaluator(TOKENS, TOKENIZER, CONFIG, cache_dir=tmp_path, progress=False)
    assert torch.equal(before, torch.random.get_rng_state())
    saved = load_evaluator(str(entry(cache)))
    assert all(torch.equal(w, other.model.state_dict()[k]) for k, w in saved.model.state_dict().items())


def test_the_key_knows_what_shapes_a_evaluator() -> None:
    key = cache_key(TOKENS, TOKENIZER, CONFIG)
    longer = dataclasses.replace(CONFIG, pretrain=PretrainConfig(steps=61, batch_size=5, lr=1e-2))  # type: ignore
    reading = dataclasses.replace(CONFIG, batch_size=7)  # type: ignore
    assert cache_key(TOKENS, TOKENIZER, reading) == key
    others = [
        cache_key(TOKENS, TOKENIZER, longer),
        cache_key(TOKENS.flip(1), TOKENIZER, CONFIG),
        cache_key(TOKENS.reshape(24, 4), TOKENIZER, CONFIG),
        cache_key(TOKENS, words("a", "b", "d", "c"), CONFIG),
    ]
    assert len({key, *others}) == 5


def test_a_failed_save_leaves_no_entry_and_the_next_try_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    short = EvaluatorConfig(hidden_size=8, num_blocks=1, num_heads=1, pretrain=PretrainConfig(steps=1, batch_size=2))
    with monkeypatch.context() as patch:
        patch.setattr("transformers.GPT2LMHeadModel.save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            train_evaluator(TOKENS, TOKENIZER, short, cache_dir=tmp_path, progress=False)
    key = cache_key(TOKENS, TOKENIZER, short)
    assert not (tmp_path / "evaluators" / key).exists()
    assert train_evaluator(TOKENS, TOKENIZER, short, cache_dir=tmp_path, progress=False).name.endswith(key)


@pytest.mark.parametrize(
    "tokens, message",
    [
        (torch.zeros(0, 8, dtype=torch.long), r"shape \(0, 8\)"),
        (torch.zeros(3, 1, dtype=torch.long), r"shape \(3, 1\)"),
        (torch.full((3, 4), 99), "token id 99 is beyond the tokenizer's 7"),
    ],
)
def test_impossible_corpora(tokens: torch.Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        train_evaluator(tokens, TOKENIZER, CONFIG, cache_dir=tmp_path, progress=False)


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluator='.*nowhere': expected a folder .* found no such folder"):
        load_evaluator(str(tmp_path / "nowhere"))


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no evaluator")
    with pytest.raises(ValueError, match=r"found no config.json among \['notes.txt'\]"):
        load_evaluator(str(tmp_path))


def copy(cache: Path, target: Path) -> Path:
    target.mkdir()
    for file in entry(cache).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_truncated_file_is_named(cache: Path, tmp_path: Path) -> None:
    weights = copy(cache, tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="evaluator='.*cut': expected"):
        load_evaluator(str(tmp_path / "cut"))


def test_missing_weights_are_not_drawn_at_random(cache: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = copy(cache, tmp_path / "part") / "model.safetensors"
    state = load_file(weights)
    state.pop("transformer.h.0.mlp.c_fc.weight")
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="expected every weight, found none for .*c_fc.weight"):
        load_evaluator(str(tmp_path / "part"))


def test_another_shape_is_named(cache: Path, tmp_path: Path) -> None:
    config = copy(cache, tmp_path / "wide") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"n_embd": 32}))
    with pytest.raises(ValueError, match="evaluator='.*wide': expected"):
        load_evaluator(str(tmp_path / "wide"))


def test_a_larger_tokenizer_is_named(cache: Path, tmp_path: Path) -> None:
    folder = copy(cache, tmp_path / "words")
    words("a", "b", "c", "d", "e", "f").save_pretrained(folder)
    with pytest.raises(ValueError, match="its tokenizer has 9 entries, its model 7"):
        load_evaluator(str(folder))
