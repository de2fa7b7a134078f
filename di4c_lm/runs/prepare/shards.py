"""Tokenise a corpus once, into a folder of shards for data=shards data.path=<folder>:

    di4c prepare shards out=<folder> path=<files, folder or URLs> tokenizer=gpt2 length=1024
    di4c prepare shards out=<folder> dataset=Skylion007/openwebtext

Interrupted, it resumes when it is started again with the same arguments. --help lists the keys.
"""

import functools
import time
from pathlib import Path

from tqdm import tqdm

from di4c_lm.core.compose import as_said
from di4c_lm.core.settings import Ints, check, section, setting
from di4c_lm.data.records.shards import FILLING, Index
from di4c_lm.data.text.corpus import check_template, open_documents
from di4c_lm.data.text.documents import Split
from di4c_lm.data.text.packing import Cursor
from di4c_lm.data.text.pairs import Records
from di4c_lm.data.text.prepare import Layout, prepare
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.runs.command import run_command
from di4c_lm.training.settings import RunConfig


@section
class Settings:
    """Text to packed, memory-mapped shards: `out` and one of `path` and `dataset` are needed."""

    out: str = setting("", "folder of shards to write")
    path: str = setting(
        "",
        "text to read: .jsonl, .txt, .md (also .gz, .zst), .json or .parquet; files, folders or fsspec URLs, with commas between",
    )
    dataset: str = setting(
        "", "data set to read in place of `path`: a hub name, or a folder in the hub's layout; streamed"
    )
    split: str = setting("train", "split of `dataset`")
    text_key: str = setting("text", "field of a record that holds the text")
    records: Records = setting(
        "text",
        "what a record holds: text; prompt: prompt and response, prompt given; chat: messages, by the tokenizer's chat template",
    )
    tokenizer: str = setting(
        "gpt2", "tokenizer: a folder, file or hub name; train: a BPE of vocab_size entries trained on the corpus"
    )
    packing: bool = setting(False, "as data.packing")
    joined: bool = setting(False, "as data.joined")
    buckets: Ints = setting((), "as data.buckets")
    mask_id: int | None = setting(
        None, "id of MASK in a given tokenizer that has one of its own; null: the last, added where there is none"
    )
    vocab_size: int = setting(1024, "entries of a tokenizer trained here")
    length: int = setting(1024, "D, tokens in a sequence")
    wrap: bool = setting(False, "put BOS and EOS at the ends of each sequence, as MDLM and SDTT do")
    validation_share: float = setting(0.001, "share of the documents that is kept for validation")
    shard_tokens: int = setting(
        33_554_432, "tokens per file, about; at most so many are lost when the command is killed"
    )
    skip_bad: bool = setting(False, "skip records and files that cannot be read, and count them")
    cache_dir: str | None = setting(
        None, "folder that keeps trained tokenizers; null: $DI4C_CACHE, else ~/.cache/di4c_lm"
    )

    def unused(self) -> dict[str, str]:
        """The other way to a corpus, and to a tokenizer."""
        found = {} if self.tokenizer == "train" else {"vocab_size": "where the tokenizer is given"}
        found |= {} if self.records == "text" else {"text_key": f"where records={self.records}"}
        filling = ("packing", "joined", "buckets") if self.records == "text" else ()
        found |= dict.fromkeys(filling, "where records=text")
        return found | ({} if self.dataset else {"split": "where no dataset is given"})

    def data(self) -> DataConfig:
        """The same corpus as a run would read it."""
        same = (
            "dataset",
            "split",
            "text_key",
            "length",
            "validation_share",
            "tokenizer",
            "mask_id",
            "vocab_size",
            "wrap",
            "skip_bad",
            "records",
            "packing",
            "joined",
            "buckets",
        )
        kind = "files" if self.path else "openwebtext"
        plain = {name: getattr(self, name) for name in same}
        return DataConfig(kind=kind, path=self.path or None, streaming=True, **plain)


def write_shards(settings: Settings) -> None:
    """Prepare, and say what was made and how fast. Raises as `prepare` and `load_tokenizer`."""
    check(settings.out, "out", settings.out, "a folder to make")
    check(bool(settings.path) != bool(settings.dataset), "path", settings.path, "a path, or a dataset, and not both")
    low = settings.length
    check(settings.shard_tokens >= low, "shard_tokens", settings.shard_tokens, f"at least length={low}")
    config = settings.data()
    documents = open_documents(config)
    train = filter(Split.by_share(config.validation_share).trains, documents.read())
    check_template(None if settings.tokenizer == "train" else load_tokenizer(config, (), Path()), config)
    tokenizer = load_tokenizer(config, train, RunConfig(cache_dir=settings.cache_dir).cache)
    names = ("length", "wrap", "shard_tokens", "validation_share", "records")
    shape = {name: getattr(settings, name) for name in names}
    source = {key: getattr(settings, key) for key in ("path", "dataset", "split", "text_key", "skip_bad")}
    begun, bytes_before, megabytes, made = time.perf_counter(), 0, 0.0, 0
    bar = tqdm(unit="B", unit_scale=True, desc="prepare", disable=None)  # how much is to come is not known

    def report(cursor: Cursor, tokens: int) -> None:
        nonlocal begun, bytes_before, megabytes, made
        if not tokens:  # where this process begins
            begun, bytes_before = time.perf_counter(), cursor.text_bytes
        bar.update(cursor.text_bytes - bytes_before - bar.n)
        megabytes, made = (cursor.text_bytes - bytes_before) / 1e6, tokens
        speed = tokens / max(time.perf_counter() - begun, 1e-9)
        bar.set_postfix_str(f"{cursor.documents:,} documents, {speed:,.0f} tokens/s", refresh=False)

    with bar:
        layout, skip_bad = Layout(**shape, filling=config.filling), settings.skip_bad
        index = prepare(Path(settings.out), documents, tokenizer, layout, source, report, skip_bad=skip_bad)
    seconds = max(time.perf_counter() - begun, 1e-9)
    print(
        f"{megabytes:,.1f} MB of text and {made:,} tokens in {seconds:,.1f} s: "
        f"{megabytes / seconds:,.2f} MB/s, {made / seconds:,.0f} tokens/s\n{description(settings.out, index)}"
    )


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
    wrap += f" data.records={index.facts['records']}" if index.has_prompts else ""
    said = index.facts.get(FILLING, {})
    wrap += "".join(f" data.{key}={as_said(value)}" for key, value in said.items() if value)
    return (
        f"{folder}: {index.rows:,} sequences of {index.length} tokens in {len(index.train)} shards, "
        f"from {counts['documents']:,} documents; {validation:,} sequences of {counts['held_out']:,} held-out documents"
        + (f"; {mended}" if mended else "")
        + f"\ntrain on it: data=shards data.path={folder} data.length={index.length}{wrap}"
    )


main = functools.partial(run_command, "di4c prepare shards", Settings, write_shards)
