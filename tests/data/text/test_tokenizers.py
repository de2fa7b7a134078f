"""Tokenizers, trained and loaded, whole and damaged."""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.core import retry as hub
from di4c_lm.data.text.documents import builtin_corpus
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import (
    END_OF_TEXT,
    bounded,
    check_lost,
    fingerprint,
    load_tokenizer,
    lost_share,
    restrict,
    train_bpe,
)
from tests.tools.helpers import run_tool

TEXTS = [f"Statement number {n} says: the naïve café of x_{n} is {n * n}." for n in range(200)]
PROBE = "The naïve café; twice  spaced\n\tx_7 ☃."
GPT2 = Path(os.environ.get("DI4C_SHARED", "absent")) / "data/gpt2"
needs_gpt2 = pytest.mark.skipif(not GPT2.is_dir(), reason="the GPT-2 tokenizer of $DI4C_SHARED is absent")


@pytest.fixture
def trained(tmp_path: Path) -> transformers.PreTrainedTokenizerFast:
    return load_tokenizer(DataConfig(vocab_size=300), TEXTS, tmp_path / "cache")


def load(name: object) -> transformers.PreTrainedTokenizerFast:
    return load_tokenizer(DataConfig(tokenizer=str(name)), [], Path("unused"))


def check_specials(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    assert tokenizer.mask_token_id == len(tokenizer) - 1 == max(tokenizer.get_vocab().values())
    assert tokenizer.eos_token_id is not None and tokenizer.bos_token_id is not None
    assert tokenizer.mask_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)


def test_trained_entries_and_specials(trained: transformers.PreTrainedTokenizerFast) -> None:
    assert len(trained) == 300 + 1
    check_specials(trained)
    assert trained.eos_token == trained.bos_token == END_OF_TEXT


def test_any_text_comes_back(trained: transformers.PreTrainedTokenizerFast) -> None:
    assert trained.decode(trained(PROBE)["input_ids"]) == PROBE


def test_training_twice_gives_the_same() -> None:
    assert train_bpe(TEXTS, 300).to_str() == train_bpe(iter(TEXTS), 300).to_str()


@given(st.text("ab \n", max_size=2000))
def test_text_is_bounded_without_a_change(text: str) -> None:
    assert "".join(bounded(text)) == text
    long = "x" * 1000 + text + " " * 1000
    assert "".join(bounded(long)) == long
    assert all(len(word) <= 2 * 256 for piece in bounded(long) for word in piece.split())


def test_the_time_of_training_is_linear_in_text_without_spaces() -> None:
    """Four times the letters take about four times as long; 16 times without a bound."""
    rng = random.Random(0)
    letters = "".join(rng.choice("ACGT") for _ in range(400_000))
    times = []
    for size in (100_000, 400_000):
        start = time.process_time()
        train_bpe([letters[:size]], 600)
        times.append(time.process_time() - start)
    assert times[1] < 9 * times[0]


def test_what_a_tokenizer_cannot_say_is_counted(trained: transformers.PreTrainedTokenizerFast, tmp_path: Path) -> None:
    assert lost_share(trained, [PROBE, "日本語"]) == 0, "a byte-level BPE says everything"
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "words.json"))
    found = load(tmp_path / "words.json")
    assert lost_share(found, ["the cat", "the dog !"]) == 4 / 13
    check_lost(found, ["the cat"], DataConfig(tokenizer="words.json", max_lost=0.0))
    with pytest.raises(
        ValueError, match=r"words\.json: 30\.8% of the characters are unknown to it, allowed are 10\.0%"
    ):
        check_lost(found, ["the cat", "the dog !"], DataConfig(tokenizer="words.json"))


def test_the_cache_is_used_and_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_tokenizer(DataConfig(vocab_size=300), TEXTS, tmp_path)
    others = [
        load_tokenizer(DataConfig(vocab_size=301), TEXTS, tmp_path),
        load_tokenizer(DataConfig(vocab_size=300), TEXTS[:100], tmp_path),
    ]
    assert len({fingerprint(tokenizer) for tokenizer in [first, *others]}) == 3
    monkeypatch.setattr("di4c_lm.data.text.tokenizers.train_bpe", None)
    assert fingerprint(load_tokenizer(DataConfig(vocab_size=300), TEXTS, tmp_path)) == fingerprint(first)


def test_a_small_corpus_gives_fewer_entries_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load_tokenizer(DataConfig(vocab_size=5000), ["one short text"], tmp_path)
    check_specials(tokenizer)
    assert 257 < len(tokenizer) < 5000
    assert "data.vocab_size=5000" in caplog.text


def test_no_document_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no document"):
        load_tokenizer(DataConfig(), [], tmp_path)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_saving_and_loading_keep_ids_and_fingerprint(
    trained: transformers.PreTrainedTokenizerFast, tmp_path: Path, form: str
) -> None:
    trained.save_pretrained(tmp_path / "saved")
    if form == "folder":
        again = load(tmp_path / "saved")
        assert fingerprint(again) == fingerprint(trained)
    else:
        again = load(tmp_path / "saved/tokenizer.json")  # the file alone does not say which entries are EOS and MASK
    check_specials(again)
    assert again(PROBE)["input_ids"] == trained(PROBE)["input_ids"]


def test_fingerprint_sees_entries_and_specials(tmp_path: Path) -> None:
    one = load_tokenizer(DataConfig(vocab_size=300), TEXTS, tmp_path)
    before = fingerprint(one)
    one("a text", truncation=True, max_length=1, padding=False)
    assert fingerprint(one) == before
    one.add_tokens(["an entry"])
    assert fingerprint(one) != before


def test_bert_like_tokenizer_gets_mask_last(tmp_path: Path) -> None:
    """[MASK] in the middle of the ids is left alone, and another MASK is appended; SEP and CLS serve as EOS and BOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "word"])}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))  # pyright: ignore[reportCallIssue]
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    specials = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(tmp_path)
    tokenizer = load(tmp_path)
    check_specials(tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (2, 3, 7)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_sentencepiece_model_gives_its_own_ids(tmp_path: Path, kind: str) -> None:
    import sentencepiece

    prefix = str(tmp_path / "spm")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_prefix=prefix,
        vocab_size=340,
        model_type=kind,
        byte_fallback=True,
        minloglevel=2,
    )
    tokenizer = load(prefix + ".model")
    check_specials(tokenizer)
    assert len(tokenizer) == 341
    reference = sentencepiece.SentencePieceProcessor(model_file=prefix + ".model")
    for text in [*TEXTS[:5], "two words  unseen: ☃"]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference.Encode(text)
    for text in ("</s> and <s>", "x</s>", "<unk> is a word"):  # the names of special tokens are text
        found = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert found == reference.Encode(text)


@needs_gpt2
def test_gpt2_from_vocab_and_merges_alone() -> None:
    tokenizer = load(GPT2)
    check_specials(tokenizer)
    assert len(tokenizer) == 50_258
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (50_256, 50_256)
    assert tokenizer("Hello world")["input_ids"] == [15_496, 995]


@needs_gpt2
def test_gpt2_fingerprint_survives_saving(tmp_path: Path) -> None:
    tokenizer = load(GPT2)
    tokenizer.save_pretrained(tmp_path)
    assert fingerprint(load(tmp_path)) == fingerprint(tokenizer)


def folder_of_nothing(path: Path) -> Path:
    (path / "empty").mkdir()
    return path / "empty"


def broken_json(path: Path) -> Path:
    (path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    return path / "tokenizer.json"


def broken_model(path: Path) -> Path:
    (path / "spm.model").write_bytes(b"not a sentencepiece model")
    return path / "spm.model"


def empty_gpt2(path: Path) -> Path:
    (path / "vocab.json").write_text(json.dumps({END_OF_TEXT: 0}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


def text_file(path: Path) -> Path:
    (path / "vocab.txt").write_text("a\nb\n")
    return path / "vocab.txt"


def outside_any_hub(path: Path) -> Path:
    return path / "absent"


@pytest.mark.parametrize("make", [folder_of_nothing, broken_json, broken_model, empty_gpt2, text_file, outside_any_hub])
def test_what_cannot_be_loaded_is_named(
    tmp_path: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    path = make(tmp_path)
    with pytest.raises(ValueError, match=f"data.tokenizer={path}") as raised:
        load(path)
    assert ("is empty" in str(raised.value)) == (make is empty_gpt2)


def test_a_hub_that_does_not_answer_names_the_offline_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("cannot connect") from ConnectionError("no route")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    monkeypatch.setattr(hub, "DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ConnectionError, match="data.tokenizer=somebody/something.*3 attempts.*Offline: data.tokenizer=train"
    ):
        load("somebody/something")


def test_code_beside_a_tokenizer_is_not_run(trained: transformers.PreTrainedTokenizerFast, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    trained.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["code.Hostile", "code.Hostile"]}, "tokenizer_class": "Hostile"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="data.tokenizer"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = list(builtin_corpus().read())[:200]
    return load_tokenizer(DataConfig(vocab_size=2000), texts, tmp_path_factory.mktemp("cache"))


CORPUS = ["The assert statement, twice  spaced.", "a = b[3] + 10\n\tnext line", "for item in sequence: pass"]


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_corpus_is_cut_into_the_same_pieces(whole: Any) -> None:
    small = restrict(whole, CORPUS)
    assert len(small) < len(whole) / 4
    for text in CORPUS:
        assert small.convert_ids_to_tokens(ids(small, text)) == whole.convert_ids_to_tokens(ids(whole, text))
    numbers = sorted(small.get_vocab().values())
    assert numbers == list(range(len(small)))
    assert small.eos_token == whole.eos_token and small.mask_token_id == len(small) - 1


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=30))
def test_any_other_text_comes_back(whole: Any, text: str) -> None:
    small = restrict(whole, CORPUS)
    assert small.decode(ids(small, text)) == whole.decode(ids(whole, text))


def test_what_cannot_be_cut_down_is_refused(whole: Any) -> None:
    with pytest.raises(ValueError, match="there is no token in the texts"):
        restrict(whole, [])


@pytest.mark.skipif("DI4C_SHARED" not in os.environ, reason="no DI4C_SHARED: GPT-2's BPE and TinyStories are elsewhere")
def test_gpt2_on_real_stories_by_the_command(tmp_path: Path) -> None:
    data = Path(os.environ["DI4C_SHARED"]) / "data"
    stories = tmp_path / "stories.jsonl"
    with (data / "tinystories" / "part_a.jsonl").open(encoding="utf-8") as lines:
        stories.write_text("".join(next(lines) for _ in range(50)), encoding="utf-8")
    words = [f"tokenizer={data / 'gpt2'}", f"path={stories}", f"out={tmp_path / 'small'}"]
    done = run_tool("restrict_tokenizer", *words)
    assert done.returncode == 0, done.stderr
    small = load_tokenizer(DataConfig(tokenizer=str(tmp_path / "small")), (), tmp_path)
    large = load_tokenizer(DataConfig(tokenizer=str(data / "gpt2")), (), tmp_path)
    assert f"{len(small)} of {len(large)} entries" in done.stdout and len(small) < 4000
    text = stories.read_text(encoding="utf-8").splitlines()[0][10:400]
    assert small.decode(ids(small, text)) == text


def test_bad_words_end_with_status_2(tmp_path: Path) -> None:
    done = run_tool("restrict_tokenizer", "path=x.jsonl")
    assert done.returncode == 2 and "out must be a folder to write to" in done.stderr
