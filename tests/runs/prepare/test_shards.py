"""The preparing tool: what it prints and makes, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from di4c_lm.data.records.shards import Index
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.runs.prepare import shards as prepare_shards

TEXTS = [f"Text {n} tells of {n * n} things,\nand of {n**3} more in x_{n}." for n in range(400)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return path


def words(corpus: Path, **more: object) -> list[str]:
    said = {"path": corpus, "tokenizer": "train", "vocab_size": 300, "length": 16, "validation_share": 0.05}
    said |= {"out": corpus.parent / "out", "cache_dir": corpus.parent / "cache"} | more
    return [f"{key}={value}" for key, value in said.items()]


def test_a_folder_is_made_and_its_use_is_told(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare_shards.main(words(corpus, wrap="true")) == 0
    said = capsys.readouterr().out
    index = Index.read(corpus.parent / "out")
    assert re.search(r"MB of text and [\d,]+ tokens in .* MB/s, [\d,]+ tokens/s", said)
    assert f"{index.rows:,} sequences of 16 tokens in 1 shards" in said
    assert f"data=shards data.path={corpus.parent / 'out'} data.length=16 data.wrap=true" in said
    assert index.facts["wrap"]
    assert prepare_shards.main(words(corpus, wrap="true")) == 0


@pytest.mark.parametrize(
    "more, said",
    [
        ({"dataset": "somebody/corpus"}, "path must be a path, or a dataset, and not both"),
        ({"path": ""}, "path must be .*, got ''"),
        ({"path": "absent.jsonl"}, "no file or folder absent.jsonl"),
        ({"out": ""}, "out must be .*, got ''"),
        ({"length": 1}, "length must be .*, got 1"),
        ({"depth": 3}, "there is no key depth"),
        ({"shard_tokens": 3}, "shard_tokens must be at least length=16, got 3"),
        ({"path": "gone://bucket/a.jsonl"}, "gone://bucket/a.jsonl.*gone"),
    ],
)
def test_bad_words_end_with_status_2_and_the_reason(
    corpus: Path, capsys: pytest.CaptureFixture[str], more: dict[str, object], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare_shards.main(words(corpus, **more))
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare_shards.main(["--help"])
    assert ended.value.code == 0
    assert "shard_tokens=33554432" in capsys.readouterr().out


def test_the_tool_reads_a_corpus_as_a_run_does() -> None:
    config = prepare_shards.Settings(path="a.jsonl", length=32).data()
    assert config == DataConfig(
        kind="files", path="a.jsonl", dataset="", length=32, tokenizer="gpt2", validation_share=0.001, streaming=True
    )
