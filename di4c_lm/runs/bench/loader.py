"""How fast text becomes shards and sequences become batches, on this machine:

    di4c bench loader path=<.jsonl, .txt or .parquet files> tokenizer=<folder, file or hub name> [length=1024] [--json]

`prepare` is all that `di4c prepare shards` does, from the files to the shards, beside `raw`: `tokenizers` alone, one
`encode_batch_fast` of all documents, which are in memory, on the same text and cores; the share of the raw speed is told by the clock
and, for a machine that others use too, by CPU time. `shards` and `streaming` are the batches of one rank, from prepared shards and
tokenised on the fly. `consumed`: tokens/s that a model uses up; the loader's multiple of it is told.
"""

import functools
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from di4c_lm.core.settings import section, setting
from di4c_lm.data.batches import BatchStream
from di4c_lm.data.text.corpus import load_corpus, open_documents
from di4c_lm.data.text.prepare import Layout, prepare
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.runs.bench.frame import BenchSettings, run_benchmark

_SHARE = 0.01  # of the documents, held out
_STREAMED_MB = 5.0  # of text, in each streaming trial


@section
class Settings(BenchSettings):
    """How fast text becomes shards (prepare), and batches from shards and from text (shards, streaming)."""

    repeat: int = setting(3, "measurements of each; the fastest counts")
    path: str = setting("", "text to load: files or a folder, as data.path takes them")
    copies: int = setting(
        4, "copies of the text that are read, so that what happens once per run weighs as little as in a long run"
    )
    tokenizer: str = setting("gpt2", "tokenizer: a folder, file or hub name")
    text_key: str = setting("text", "field of a record that holds the text")
    length: int = setting(1024, "D, tokens in a sequence")
    batch_size: int = setting(8, "sequences in a batch")
    batches: int = setting(400, "batches read in each measurement of shards")
    consumed: float = setting(0.0, "tokens/s that a model consumes, to compare with; 0: no comparison")

    WAYS = ("prepare", "shards", "streaming")

    def data(self) -> DataConfig:
        """The corpus read as a run would."""
        return DataConfig(
            kind="files",
            path=",".join([self.path] * self.copies),
            text_key=self.text_key,
            tokenizer=self.tokenizer,
            length=self.length,
            validation_share=_SHARE,
            streaming=True,
            shuffle_buffer=64,
        )


def measure(way: str, settings: Settings) -> dict[str, float]:
    """Speeds by name."""
    layout = Layout(length=settings.length, wrap=False, shard_tokens=1 << 25, validation_share=_SHARE)
    with tempfile.TemporaryDirectory() as temporary:
        folder, documents = Path(temporary), open_documents(settings.data())
        tokenizer = load_tokenizer(settings.data(), documents.read(), folder)

        def write(name: str) -> Path:
            prepare(folder / name, documents, tokenizer, layout, {})
            return folder / name

        if way == "prepare":
            return _preparing(list(documents.read()), tokenizer, write, settings.repeat)
        data, count = settings.data(), settings.batches
        if way == "shards":
            data = DataConfig(kind="shards", path=str(write("shards")), length=settings.length)
        else:
            text = next(iter(documents.read()))
            megabytes_a_token = len(text.encode()) / 1e6 / max(1, len(tokenizer(text)["input_ids"]))
            count = max(1, int(_STREAMED_MB / (megabytes_a_token * settings.length * settings.batch_size)))
        train, speeds = load_corpus(data, 0, folder).train, []
        for _ in range(settings.repeat):
            stream = BatchStream(train, micro_batch_size=settings.batch_size)
            seconds, _ = _seconds(lambda stream=stream: [batch.x for batch in islice(stream, count)])
            speeds.append(count * settings.batch_size * settings.length / seconds)
    found = {"tokens_per_s": max(speeds)}
    return found | ({"times_consumed": max(speeds) / settings.consumed} if settings.consumed else {})


def _preparing(texts: list[str], tokenizer: Any, write: Callable[[str], Path], repeat: int) -> dict[str, float]:
    backend, megabytes = tokenizer.backend_tokenizer, sum(len(text.encode()) for text in texts) / 1e6
    tokens = sum(len(encoding.ids) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False))
    raw: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    for number in range(repeat):  # in turn, as the machine's speed may change
        raw.append(_seconds(lambda: backend.encode_batch_fast(texts, add_special_tokens=False)))
        ours.append(_seconds(lambda number=number: write(f"shards_{number}")))
    (raw_s, raw_cpu_s), (ours_s, ours_cpu_s) = (tuple(map(min, zip(*times, strict=True))) for times in (raw, ours))
    return {
        "megabytes": megabytes,
        "tokens": float(tokens),
        "raw_mb_per_s": megabytes / raw_s,
        "raw_tokens_per_s": tokens / raw_s,
        "mb_per_s": megabytes / ours_s,
        "tokens_per_s": tokens / ours_s,
        "share_of_raw": raw_s / ours_s,
        "share_of_raw_by_cpu_time": raw_cpu_s / ours_cpu_s,
    }


def _seconds(work: Callable[[], Any]) -> tuple[float, float]:
    """On the clock, and of this process on all cores."""
    started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started[0], time.process_time() - started[1]


main = functools.partial(run_benchmark, "di4c bench loader", Settings, measure)
