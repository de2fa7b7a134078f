"""Preparing: the same sequences as in memory, the same bytes after kills, and what bad text gets."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from di4c_lm.data.batches import PackedSource
from di4c_lm.data.records.shards import Index, Shards, ShardSource
from di4c_lm.data.text import packing
from di4c_lm.data.text.corpus import load_corpus, open_documents
from di4c_lm.data.text.prepare import Layout, prepare
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer

TEXTS = [f"Text {n} tells of {n * n} things,\nand of {n**3} more in x_{n}. " * (1 + n % 7) for n in range(2500)]
LAYOUT = Layout(length=16, wrap=False, shard_tokens=20_000, validation_share=0.05)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, and the tokenizer that belongs to them."""
    path = tmp_path_factory.mktemp("corpus")
    for name, texts in (("a.jsonl", TEXTS[:1500]), ("b.jsonl", TEXTS[1500:])):
        (path / name).write_text("\n".join(json.dumps({"text": text}) for text in texts))
    load_tokenizer(DataConfig(vocab_size=300), TEXTS[:300], path / "cache").save_pretrained(str(path / "tokenizer"))
    return path


@pytest.fixture(scope="module")
def tokenizer(corpus: Path) -> transformers.PreTrainedTokenizerFast:
    return load_tokenizer(DataConfig(tokenizer=str(corpus / "tokenizer")), (), corpus)


def make(
    out: Path, path: Path, tokenizer: transformers.PreTrainedTokenizerFast, layout: Layout = LAYOUT, **settings: Any
) -> Index:
    config = DataConfig(kind="files", path=str(path), streaming=True, **settings)
    return prepare(out, open_documents(config), tokenizer, layout, {"path": "the corpus"})


def rows(out: Path) -> np.ndarray:
    return Shards.read(out).states()


@pytest.mark.parametrize("wrap", [False, True])
def test_the_sequences_are_those_of_a_corpus_in_memory(
    corpus: Path, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path, *, wrap: bool
) -> None:
    layout = Layout(length=16, wrap=wrap, shard_tokens=20_000, validation_share=0.05)
    index = make(tmp_path / "out", corpus, tokenizer, layout)
    common: dict[str, Any] = {"length": 16, "wrap": wrap}
    own = str(corpus / "tokenizer")
    whole = load_corpus(DataConfig(kind="files", path=str(corpus), tokenizer=own, **common), 3, tmp_path)
    found = load_corpus(DataConfig(kind="shards", path=str(tmp_path / "out"), **common), 3, tmp_path)
    assert isinstance(whole.train, PackedSource) and isinstance(found.train, ShardSource)
    assert np.array_equal(rows(tmp_path / "out"), whole.train.tokens_ND)
    assert torch.equal(found.validation, whole.validation)
    assert found.validation_texts == whole.validation_texts
    assert len(index.train) > 5
    assert {shard.rows for shard in index.train[:-1]} == {20_000 // 16}
    batch = found.train.read(0, 50)
    assert torch.equal(batch.x, torch.from_numpy(whole.train.tokens_ND.astype(np.int64))[batch.sample_id])


def test_counts_are_those_of_the_corpus(
    corpus: Path, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    index = make(tmp_path / "out", corpus, tokenizer)
    counts = index.counts
    assert counts["documents"] + counts["held_out"] == len(TEXTS)
    assert counts["text_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert counts["tokens"] == index.rows * 16 == rows(tmp_path / "out").size
    assert counts["dropped_tokens"] < 16
    assert (counts["split"], counts["replaced"], counts["skipped"]) == (0, 0, 0)
    eos = int((rows(tmp_path / "out") == index.facts["eos_id"]).sum())
    assert counts["documents"] - 16 <= eos <= counts["documents"]


def test_after_kills_the_bytes_are_those_of_an_unbroken_run(
    corpus: Path, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        str(Path(__file__).with_name("kill_preparing.py")),
        str(corpus),
        str(tmp_path / "killed"),
    ]
    done = subprocess.run([*command, "4"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    stood = json.loads(done.stdout)
    assert len(stood) == 4 and stood[-1] > stood[0]
    layout = Layout(length=64, wrap=True, shard_tokens=30_000, validation_share=0.1)
    make(tmp_path / "unbroken", corpus, tokenizer, layout)
    content = [
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "killed", tmp_path / "unbroken")
    ]
    assert content[0].keys() == content[1].keys()
    assert content[0] == content[1]


class Stop(Exception):
    pass


def stopped(out: Path, path: Path, tokenizer: transformers.PreTrainedTokenizerFast, shards: int) -> None:
    """A folder whose preparation ended after some shards."""
    config = DataConfig(kind="files", path=str(path), streaming=True)

    def report(*_: object) -> None:
        if len(list(out.glob("train_*.bin"))) >= shards:
            raise Stop

    with pytest.raises(Stop):
        prepare(out, open_documents(config), tokenizer, LAYOUT, {"path": "the corpus"}, report)


@pytest.fixture
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 10_000)


def test_going_on_with_other_settings_is_refused(
    corpus: Path, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path, small_runs: None
) -> None:
    stopped(tmp_path / "out", corpus, tokenizer, 2)
    other = Layout(length=16, wrap=True, shard_tokens=20_000, validation_share=0.05)
    with pytest.raises(ValueError, match="made with layout .*'wrap': False.* now it is .*'wrap': True"):
        make(tmp_path / "out", corpus, tokenizer, other)
    with pytest.raises(ValueError, match="made with source .*identity"):
        make(tmp_path / "out", corpus / "a.jsonl", tokenizer)
    (tmp_path / "out/train_00000.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="train_00000.bin: expected 40000 bytes"):
        make(tmp_path / "out", corpus, tokenizer)


def test_a_finished_folder_is_not_made_again(
    corpus: Path, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    index = make(tmp_path / "out", corpus, tokenizer)
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert make(tmp_path / "out", corpus, tokenizer) == index
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == stamps


def test_a_folder_with_other_files_is_refused(
    corpus: Path, tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="thesis.tex, which is no part of shards"):
        make(tmp_path, corpus, tokenizer)


def test_a_full_disk_keeps_what_is_finished(
    corpus: Path,
    tokenizer: transformers.PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_runs: None,
) -> None:
    whole = make(tmp_path / "whole", corpus, tokenizer)
    replace = os.replace

    def full(old: Any, new: Any) -> None:
        if Path(new).name == "train_00003.bin":
            raise OSError(28, "No space left on device")
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            make(tmp_path / "out", corpus, tokenizer)
    assert make(tmp_path / "out", corpus, tokenizer) == whole


def test_what_was_mended_is_counted_also_across_a_restart(
    tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path, small_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "PIECE_CHARACTERS", 2000)
    lines = [json.dumps({"text": text}).encode() for text in TEXTS[:1200]]
    lines[3], lines[7], lines[900] = b'{"text": "a\xff\xfeb"}', b"broken", b"broken too"
    lines.insert(1000, json.dumps({"text": "one very long document " * 400}).encode())
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines) + b"\n{")
    whole = make(tmp_path / "whole", tmp_path / "in.jsonl", tokenizer, skip_bad=True)
    assert (whole.counts["split"], whole.counts["replaced"], whole.counts["skipped"]) == (1, 2, 3)
    config = DataConfig(kind="files", path=str(tmp_path / "in.jsonl"), streaming=True, skip_bad=True)
    with pytest.raises(Stop):
        prepare(
            tmp_path / "out", open_documents(config), tokenizer, LAYOUT, {"path": "the corpus"}, _stop_late(tmp_path)
        )
    assert make(tmp_path / "out", tmp_path / "in.jsonl", tokenizer, skip_bad=True) == whole


def _stop_late(folder: Path):
    def report(*_: object) -> None:
        if len(list((folder / "out").glob("train_*.bin"))) >= 3:
            raise Stop

    return report


@pytest.mark.parametrize(
    "texts, share, said",
    [
        ([], 0.05, "the corpus is empty"),
        (["one short text"], 0.05, "the 1 training documents hold fewer tokens than one sequence of length=16"),
        (TEXTS[:50], 1e-9, "the 0 validation documents hold fewer tokens"),
    ],
)
def test_too_small_a_corpus_is_named(
    tokenizer: transformers.PreTrainedTokenizerFast, tmp_path: Path, texts: list[str], share: float, said: str
) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    layout = Layout(length=16, wrap=False, shard_tokens=20_000, validation_share=share)
    with pytest.raises(ValueError, match=said):
        make(tmp_path / "out", tmp_path / "in.jsonl", tokenizer, layout)
    assert not (tmp_path / "out/index.json").exists()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"length": 32}, "data.length=32, but the shards in .* were prepared with 16: say data.length=16"),
        ({"wrap": True}, "data.wrap=true, but .* false: say data.wrap=false"),
        (
            {"tokenizer": "{other}"},
            "not the tokenizer of the shards.*expected 301 entries with fingerprint .* found 281",
        ),
    ],
)
def test_shards_of_another_kind_than_the_run_asks_are_named(
    corpus: Path,
    tokenizer: transformers.PreTrainedTokenizerFast,
    tmp_path: Path,
    settings: dict[str, Any],
    said: str,
) -> None:
    make(tmp_path / "out", corpus / "b.jsonl", tokenizer)
    other = load_tokenizer(DataConfig(vocab_size=280), TEXTS, tmp_path)
    other.save_pretrained(str(tmp_path / "other"))
    asked: dict[str, Any] = {"length": 16} | {
        key: value.format(other=tmp_path / "other") if isinstance(value, str) else value
        for key, value in settings.items()
    }
    with pytest.raises(ValueError, match=said):
        load_corpus(DataConfig(kind="shards", path=str(tmp_path / "out"), **asked), 0, tmp_path)
