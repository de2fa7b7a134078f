"""Whole corpora, from text to sequences."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from di4c_lm.data.batches import BatchStream, PackedSource
from di4c_lm.data.text.corpus import Corpus, load_corpus
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.streaming import StreamingSource
from di4c_lm.data.text.tokenizers import END_OF_TEXT

SHARED = Path(os.environ.get("DI4C_SHARED", "absent")) / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data of $DI4C_SHARED are absent")
TEXTS = [f"Text {n} tells of {n * n} things,\nand of {n**3} more in x_{n}." for n in range(400)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "corpus/a.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(file)


def load(path: str, *, seed: int = 0, cache: Path | None = None, **settings: Any) -> Corpus:
    small: dict[str, Any] = {"kind": "files", "path": path, "length": 16, "vocab_size": 300}
    return load_corpus(DataConfig(**small | settings), seed, cache or Path(path).parents[1] / "cache")


def documents_of(corpus: Corpus, rows: torch.Tensor) -> set[str]:
    """The whole documents in a line of packed sequences."""
    return set(str(corpus.tokenizer.decode(rows.flatten())).split(str(corpus.tokenizer.eos_token))) & set(TEXTS)


def test_no_document_is_on_both_sides_and_none_is_lost(path: str) -> None:
    corpus = load(path)
    assert isinstance(corpus.train, PackedSource)
    train = documents_of(corpus, torch.from_numpy(corpus.train.tokens_ND.astype(np.int64)))
    held_out = documents_of(corpus, corpus.validation)
    assert not train & held_out
    assert len(train | held_out) >= len(TEXTS) - 2  # the last, partial sequence of either side is dropped
    assert held_out <= set(corpus.validation_texts)
    assert 5 <= len(corpus.validation_texts) <= 40


def test_the_evaluator_reads_documents_of_its_own(path: str) -> None:
    corpus, plain = load(path, evaluator_share=0.3), load(path)
    assert plain.evaluator is None and corpus.evaluator is not None
    assert isinstance(corpus.train, PackedSource)
    read = documents_of(corpus, torch.from_numpy(corpus.train.tokens_ND.astype(np.int64)))
    own = documents_of(corpus, corpus.evaluator)
    assert own and read and not own & read and not (own | read) & set(corpus.validation_texts)
    assert corpus.validation_texts == plain.validation_texts
    assert len(own) == pytest.approx(0.3 * len(TEXTS), rel=0.3)


@pytest.mark.parametrize(
    "settings, allowed",
    [
        ({"evaluator_share": 0.95}, r"evaluator_share must be in \[0, 0\.95\), got 0\.95"),
        (
            {"evaluator_share": 0.1, "streaming": True},
            "evaluator_share must be 0 where streaming=true",
        ),
    ],
)
def test_an_impossible_share_for_the_evaluator_is_named(path: str, settings: dict[str, Any], allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        load(path, **settings)


def test_states_and_shapes(path: str) -> None:
    corpus = load(path)
    assert corpus.validation.shape[1] == 16
    assert corpus.validation.dtype == torch.int64
    assert isinstance(corpus.train, PackedSource)
    batch = corpus.train.read(0, 5)
    assert batch.x.shape == (5, 16)
    assert corpus.tokenizer.mask_token_id == len(corpus.tokenizer) - 1 == 300
    assert int(batch.x.max()) < 300


def test_wrap_frames_every_sequence(path: str) -> None:
    corpus = load(path, wrap=True)
    assert isinstance(corpus.train, PackedSource)
    rows = torch.cat([corpus.train.read(0, 50).x, corpus.validation])
    assert set(rows[:, 0].tolist()) == set(corpus.tokenizer.encode(END_OF_TEXT))
    assert set(rows[:, -1].tolist()) == set(corpus.tokenizer.encode(END_OF_TEXT))


def test_streaming_gives_the_same_sequences_and_split(path: str) -> None:
    whole, streamed = load(path), load(path, streaming=True, shuffle_buffer=7)
    assert isinstance(whole.train, PackedSource) and isinstance(streamed.train, StreamingSource)
    count = len(whole.train)
    stream = streamed.train.of_rank(0, 1)
    batch = stream.take(count)
    assert torch.equal(batch.x, torch.from_numpy(whole.train.tokens_ND.astype(np.int64))[batch.sample_id])
    assert sorted(batch.sample_id.tolist()) == list(range(count))
    assert int(stream.take(1).epoch) == 1
    assert streamed.validation_texts == whole.validation_texts
    assert torch.equal(streamed.validation, whole.validation)


def test_the_seed_changes_the_order_alone(path: str) -> None:
    one, two = load(path, seed=1), load(path, seed=2)
    assert isinstance(one.train, PackedSource) and isinstance(two.train, PackedSource)
    assert one.fingerprint == two.fingerprint
    assert torch.equal(one.validation, two.validation)
    assert not torch.equal(one.train.read(0, 8).sample_id, two.train.read(0, 8).sample_id)


def test_the_fingerprint_sees_the_text_and_the_cut(path: str) -> None:
    fingerprints = {load(path).fingerprint, load(path, length=17).fingerprint, load(path, vocab_size=290).fingerprint}
    Path(path).write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:-1]), encoding="utf-8")
    assert len(fingerprints | {load(path).fingerprint}) == 4


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "texts, settings, said",
    [
        ([], {}, "empty"),
        (["alone " * 50], {}, "one distinct document|fewer tokens"),
        (["short one", "short two"], {"length": 512}, "data.length=512"),
    ],
)
def test_too_small_a_corpus_is_named(
    path: str, texts: list[str], settings: dict[str, Any], said: str, *, streaming: bool
) -> None:
    Path(path).write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    with pytest.raises(ValueError, match=said) as raised:
        next(BatchStream(load(path, streaming=streaming, **settings).train, micro_batch_size=1))
    assert path in str(raised.value)


def test_a_split_on_a_local_hub_folder(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(path).parents[1] / "cache")
    assert load(path, kind="openwebtext", dataset=str(Path(path).parent)).fingerprint == load(path).fingerprint


def test_the_builtin_corpus(tmp_path: Path) -> None:
    corpus = load_corpus(DataConfig(), 0, tmp_path)
    assert isinstance(corpus.train, PackedSource)
    assert len(corpus.tokenizer) == 1025
    assert len(corpus.train) > 8_000
    assert len(corpus.validation) > 200


@needs_shared
def test_real_text_with_the_gpt2_tokenizer(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tokenizer": str(SHARED / "gpt2"), "length": 1024, "wrap": True}
    path = str(SHARED / "openwebtext")
    corpus = load(path, cache=tmp_path, **settings)
    assert isinstance(corpus.train, PackedSource)
    assert len(corpus.tokenizer) == 50_258
    assert 1_400 < len(corpus.train) + len(corpus.validation) < 2_000  # 7.3 MB at 4.4 bytes a token
    first = next(iter(corpus.validation_texts))
    assert str(corpus.tokenizer.decode(corpus.validation[0, 1:-1]))[:500] == first[:500]
    source = load(path, cache=tmp_path, streaming=True, shuffle_buffer=64, **settings).train
    assert isinstance(source, StreamingSource)
    streamed = source.of_rank(0, 1).take(4)
    assert torch.equal(streamed.x, torch.from_numpy(corpus.train.tokens_ND.astype(np.int64))[streamed.sample_id])
