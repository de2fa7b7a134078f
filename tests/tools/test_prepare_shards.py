"""The preparing tool and the loader's benchmark: what they print and make, and what they refuse."""

import importlib
import json
import os
import re
import sys
from pathlib import Path

import pytest

from di4c_lm.data.records.shards import Index
from di4c_lm.domains.text.settings import DataConfig

TOOLS = Path(__file__).parents[2] / "tools"
TEXTS = [f"Text {n} tells of {n * n} things,\nand of {n**3} more in x_{n}." for n in range(400)]
REAL = Path(os.environ.get("DI4C_SHARED", "absent")) / "data"

sys.path.insert(0, str(TOOLS))
prepare_shards, bench_loader = (importlib.import_module(name) for name in ("prepare_shards", "bench_loader"))


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
    assert f"{index.sequences:,} sequences of 16 tokens in 1 shards" in said
    assert f"data=shards data.path={corpus.parent / 'out'} data.length=16 data.wrap=true" in said
    assert index.wrap
    assert prepare_shards.main(words(corpus, wrap="true")) == 0


@pytest.mark.parametrize(
    "more, said",
    [
        ({"dataset": "somebody/corpus"}, "path must be a path, or a dataset, and not both"),
        ({"path": ""}, "path must be .*, got null"),
        ({"path": "absent.jsonl"}, "no file or folder absent.jsonl"),
        ({"out": ""}, "out must be .*, got null"),
        ({"length": 1}, "length must be .*, got 1"),
        ({"depth": 3}, "unknown key 'depth'"),
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
    config = prepare_shards.PrepareConfig(path="a.jsonl", length=32).data()
    assert config == DataConfig(
        kind="files", path="a.jsonl", dataset="", length=32, tokenizer="gpt2", validation_share=0.001, streaming=True
    )


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data of $DI4C_SHARED are absent")
def test_the_benchmark_prints_one_object_last(capsys: pytest.CaptureFixture[str]) -> None:
    said = [f"path={REAL / 'tinystories'}", f"tokenizer={REAL / 'gpt2'}", "length=64", "repeat=1", "copies=1"]
    assert bench_loader.main([*said, "batches=20", "consumed=10", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert [line.split()[0] for line in lines[:-1]] == list(found)
    assert found["prepare_share_of_raw"] == pytest.approx(found["prepare_mb_per_s"] / found["raw_mb_per_s"])
    assert found["shards_times_consumed"] == pytest.approx(found["shards_tokens_per_s"] / 10)
    assert min(found.values()) > 0
