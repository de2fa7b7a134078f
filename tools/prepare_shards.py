"""Tokenise a corpus once, into a folder of shards for data=shards data.path=<folder>:

    python tools/prepare_shards.py out=<folder> path=<files, folder or URLs> tokenizer=gpt2 length=1024
    python tools/prepare_shards.py out=<folder> dataset=Skylion007/openwebtext

Interrupted, it resumes when it is started again with the same arguments. --help lists the keys.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tqdm import tqdm

from di4c_lm.core.settings import check, section, setting
from di4c_lm.data.records.shards import Index
from di4c_lm.data.text.corpus import open_documents
from di4c_lm.data.text.documents import Split
from di4c_lm.data.text.packing import Cursor
from di4c_lm.data.text.prepare import Layout, prepare
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.training.settings import RunConfig
from tools.arguments import run_script


@section
class PrepareConfig:
    """Text to packed, memory-mapped shards: `out` and one of `path` and `dataset` are needed."""

    out: str = setting("", "the folder to make")
    path: str = setting(
        "",
        ".jsonl, .txt (each also .gz, .zst) or .parquet: files, folders, fsspec URLs (s3://, hf://, ...), joined by commas",
    )
    dataset: str = setting("", "a hub name, or a folder of data files in the hub's layout; streamed")
    split: str = setting("train", "of `dataset`")
    text_key: str = setting("text", "field of a record that holds the text")
    tokenizer: str = setting(
        "gpt2", "a folder, file or hub name; train: a BPE of vocab_size entries trained on the corpus"
    )
    vocab_size: int = setting(1024, "tokenizer=train: its entries")
    length: int = setting(1024, "D, tokens a sequence")
    wrap: bool = setting(False, "BOS and EOS at both ends of each sequence, the MDLM and SDTT convention")
    validation_share: float = setting(0.001, "of the documents")
    shard_tokens: int = setting(33_554_432, "about so many a file; what a kill loses at most")
    skip_bad: bool = setting(False, "pass over records and files that cannot be read, and count them")
    cache_dir: str | None = setting(None, "of trained tokenizers; absent: $DI4C_CACHE, else ~/.cache/di4c_lm")

    def data(self) -> DataConfig:
        """The same corpus as a run would read it."""
        return DataConfig(
            kind="files" if self.path else "openwebtext",
            path=self.path or None,
            dataset=self.dataset,
            split=self.split,
            text_key=self.text_key,
            length=self.length,
            streaming=True,
            validation_share=self.validation_share,
            tokenizer=self.tokenizer,
            vocab_size=self.vocab_size,
            wrap=self.wrap,
            skip_bad=self.skip_bad,
        )


class Progress:
    """A bar in bytes of text, with tokens/s; how much is to come is not known. Counts from where this process began."""

    def __init__(self) -> None:
        self._bar = tqdm(unit="B", unit_scale=True, desc="prepare", disable=None)
        self._started, self._before = time.perf_counter(), 0
        self.seconds, self.megabytes, self.tokens = 0.0, 0.0, 0

    def __call__(self, cursor: Cursor, tokens: int) -> None:
        """As `prepare.Report`: first at the start, without tokens."""
        if not tokens:
            self._started, self._before = time.perf_counter(), cursor.text_bytes
        self.seconds, self.tokens = time.perf_counter() - self._started, tokens
        self._bar.update(cursor.text_bytes - self._before - round(self.megabytes * 1e6))
        self.megabytes = (cursor.text_bytes - self._before) / 1e6
        self._bar.set_postfix_str(f"{cursor.documents:,} documents, {self._rate(tokens):,.0f} tokens/s", refresh=False)

    def _rate(self, amount: float) -> float:
        return amount / max(self.seconds, 1e-9)

    def close(self) -> str:
        """End the bar; what was done and how fast."""
        self._bar.close()
        return (
            f"{self.megabytes:,.1f} MB of text and {self.tokens:,} tokens in {self.seconds:,.1f} s: "
            f"{self._rate(self.megabytes):,.2f} MB/s, {self._rate(self.tokens):,.0f} tokens/s"
        )


def write_shards(settings: PrepareConfig) -> None:
    """Prepare, and say what was made and how fast. Raises as `prepare` and `load_tokenizer`."""
    check(settings.out, "out", settings.out, "a folder to make")
    check(bool(settings.path) != bool(settings.dataset), "path", settings.path, "a path, or a dataset, and not both")
    low = settings.length
    check(settings.shard_tokens >= low, "shard_tokens", settings.shard_tokens, f"at least length={low}")
    config = settings.data()
    documents = open_documents(config)
    train = filter(Split.by_share(config.validation_share).trains, documents.read())
    tokenizer = load_tokenizer(config, train, RunConfig(cache_dir=settings.cache_dir).cache)
    shape = {name: getattr(settings, name) for name in ("length", "wrap", "shard_tokens", "validation_share")}
    source = {key: getattr(settings, key) for key in ("path", "dataset", "split", "text_key", "skip_bad")}
    progress = Progress()
    try:
        index = prepare(Path(settings.out), documents, tokenizer, Layout(**shape), source, progress)
    finally:
        speed = progress.close()
    print(f"{speed}\n{description(settings.out, index)}")


def description(folder: str, index: Index) -> str:
    """What the folder holds, and how to train on it."""
    counts = index.counts
    mended = ", ".join(
        f"{counts[key]:,} {what}"
        for key, what in (
            ("split", "documents split"),
            ("replaced", "places of invalid UTF-8 replaced"),
            ("skipped", "records or files skipped"),
        )
        if counts[key]
    )
    validation = index.validation.rows if index.validation else 0
    wrap = " data.wrap=true" if index.facts["wrap"] else ""
    return (
        f"{folder}: {index.rows:,} sequences of {index.length} tokens in {len(index.train)} shards, "
        f"from {counts['documents']:,} documents; {validation:,} sequences of {counts['held_out']:,} held-out documents"
        + (f"; {mended}" if mended else "")
        + f"\ntrain on it: data=shards data.path={folder} data.length={index.length}{wrap}"
    )


def main(argv: Sequence[str]) -> int:
    """The exit status; bad input, a damaged corpus or a full disk end the program with 2."""
    return run_script(__file__, PrepareConfig, write_shards, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
