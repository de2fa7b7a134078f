"""How fast text becomes shards and sequences become batches, on this machine:

    python tools/bench_loader.py path=<.jsonl, .txt or .parquet files> tokenizer=<folder, file or hub name> [length=1024] [--json]

`raw` is `tokenizers` alone, one `encode_batch_fast` of all documents, which are in memory; `prepare` is all that
tools/prepare_shards.py does, from the files to the shards, on the same text and cores; their ratio is the share of the raw speed, by
the clock and, for a machine that others use too, by CPU time. `shards` and `streaming` are the batches of one rank, nothing else
running: from prepared shards, and tokenised on the fly. Each is measured `repeat` times in turn, and the fastest counts. `consumed`:
tokens/s that a model uses up; the loader's multiple of it is told. `--json` prints one object on the last line.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from di4c_lm.core import cli
from di4c_lm.core.settings import check
from di4c_lm.data.batches import BatchStream
from di4c_lm.data.records.shard_writer import Layout, prepare
from di4c_lm.data.text.corpus import load_corpus, open_documents
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.domains.text.settings import DataConfig

PROGRAM = "tools/bench_loader.py"
_SHARE = 0.01  # of the documents, held out
_STREAMED_MB = 5.0  # of text, in each streaming trial


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class BenchConfig:
    """What is read, and how much."""

    path: str | None = None
    copies: int = (
        4  # of the text, one after the other, so that what is done once a run does not count for more than it would
    )
    tokenizer: str = "gpt2"
    text_key: str = "text"
    length: int = 1024  # D
    batch_size: int = 8  # sequences
    batches: int = 400
    repeat: int = 3
    consumed: float = 0.0  # tokens/s

    def __post_init__(self) -> None:
        for name in ("batch_size", "batches", "repeat", "copies"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "a value of at least 1")

    def data(self, **settings: Any) -> DataConfig:
        """The corpus read as a run would."""
        path = ",".join([self.path or ""] * self.copies)
        common: dict[str, Any] = {"path": path, "text_key": self.text_key, "tokenizer": self.tokenizer}
        return DataConfig(kind="files", length=self.length, validation_share=_SHARE, **common, **settings)


def _seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """On the clock, and of this process on all cores."""
    started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started[0], time.process_time() - started[1]


def measure(settings: BenchConfig, folder: Path) -> dict[str, float]:
    """Speeds by name; `folder` is for shards, and is left full of them."""
    config = settings.data(streaming=True, shuffle_buffer=64)
    documents = open_documents(config)
    tokenizer = load_tokenizer(config, documents.read(), folder)
    texts = list(documents.read())
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    backend = tokenizer.backend_tokenizer
    tokens = sum(len(encoding.ids) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False))
    layout = Layout(length=settings.length, wrap=False, shard_tokens=1 << 25, validation_share=_SHARE)
    raw: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    for number in range(settings.repeat):
        raw.append(_seconds(lambda: backend.encode_batch_fast(texts, add_special_tokens=False)))
        out = folder / f"shards_{number}"
        ours.append(_seconds(lambda out=out: prepare(out, documents, tokenizer, layout, {})))
    (raw_s, raw_cpu_s), (ours_s, ours_cpu_s) = (tuple(map(min, zip(*times, strict=True))) for times in (raw, ours))
    found = {
        "megabytes": megabytes,
        "tokens": float(tokens),
        "raw_mb_per_s": megabytes / raw_s,
        "raw_tokens_per_s": tokens / raw_s,
        "prepare_mb_per_s": megabytes / ours_s,
        "prepare_tokens_per_s": tokens / ours_s,
        "prepare_share_of_raw": raw_s / ours_s,
        "prepare_share_of_raw_by_cpu_time": raw_cpu_s / ours_cpu_s,
    }
    return found | _loader_speeds(settings, folder, megabytes / tokens)


def _loader_speeds(settings: BenchConfig, folder: Path, megabytes_a_token: float) -> dict[str, float]:
    shards = DataConfig(kind="shards", path=str(folder / "shards_0"), length=settings.length)
    found = {}
    for name, config in (("shards", shards), ("streaming", settings.data(streaming=True, shuffle_buffer=64))):
        corpus = load_corpus(config, 0, folder)
        size = settings.batch_size
        count = (
            settings.batches
            if name == "shards"
            else max(1, int(_STREAMED_MB / (megabytes_a_token * settings.length * size)))
        )
        best = 0.0
        for _ in range(settings.repeat):
            stream = BatchStream(corpus.train, micro_batch_size=size)
            seconds, _ = _seconds(lambda stream=stream, count=count: [batch.x for batch in islice(stream, count)])
            best = max(best, count * size * settings.length / seconds)
        found[f"{name}_tokens_per_s"] = best
        if settings.consumed:
            found[f"{name}_times_consumed"] = best / settings.consumed
    return found


def main(argv: list[str]) -> int:
    """Measure and print; bad input ends with exit status 2."""
    settings = cli.parse_words(BenchConfig, [word for word in argv if word != "--json"], PROGRAM)
    try:
        check(bool(settings.path), "path", settings.path, "files or a folder")
        with tempfile.TemporaryDirectory() as folder:
            found = measure(settings, Path(folder))
    except (ValueError, ConnectionError, OSError) as error:
        cli.fail(str(error))
    for name, value in found.items():
        print(f"{name:36}{value:16,.2f}")
    if "--json" in argv:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
