"""A corpus made ready: its tokenizer, a source of training sequences, and what is held out."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from di4c_lm.core.settings import check
from di4c_lm.core.terminal import progress_bar
from di4c_lm.data.batches import Batch, PackedSource, cut, make_batch
from di4c_lm.data.records.features import FeatureSource
from di4c_lm.data.records.shards import FILLING, TOOLS, Index, Shards, ShardSource, row_dtype
from di4c_lm.data.text.documents import (
    VALIDATION_CHARACTERS,
    Documents,
    Split,
    builtin_corpus,
    first_characters,
)
from di4c_lm.data.text.files import file_documents, hub_documents, hub_stream
from di4c_lm.data.text.packing import Cursor, Run, encode_documents, encode_runs, frame_of, pack
from di4c_lm.data.text.pairs import Filling, Pairs, pair_runs
from di4c_lm.data.text.prepare import TOKENIZER, read_held_out
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.streaming import StreamingSource
from di4c_lm.data.text.tokenizers import check_lost, fingerprint, load_tokenizer

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

# Held-out text that is kept: the first documents up to so many characters. A stream is read only as far as that takes, and at most so far.
STREAMED_VALIDATION_CHARACTERS = 2_000_000
STREAMED_CHARACTERS = 64_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a run reads. `fingerprint` changes with the tokenizer, and, unstreamed, with any training token."""

    name: str
    tokenizer: "transformers.PreTrainedTokenizerFast"
    train: PackedSource | ShardSource | FeatureSource | StreamingSource
    evaluator: Int[Tensor, "J D"] | None = (
        None  # what `data.evaluator_share` sets aside for the evaluator, read by nothing else
    )
    validation: Int[Tensor, "N D"]
    validation_given: Int[Tensor, " N"] | None = None  # of records with prompts: how many tokens of each are given
    validation_texts: list[str]
    fingerprint: str


def open_documents(config: DataConfig) -> Documents:
    """The corpus of texts that `config` names, not yet read. Raises ValueError where a local path does not exist."""
    assert not config.is_prepared
    if config.kind == "builtin":
        return builtin_corpus()
    if config.kind == "files":
        assert config.path is not None
        return file_documents(config.path, text_key=config.document_key, skip_bad=config.skip_bad)
    if config.streaming:
        return hub_stream(config.dataset, split=config.split, text_key=config.document_key, skip_bad=config.skip_bad)
    return hub_documents(config.dataset, split=config.split, text_key=config.text_key)


def check_corpus(config: DataConfig) -> None:
    """Raise `ValueError` for paths, shards and a tokenizer that cannot be had, as far as that can be told without reading text.

    Raises `ConnectionError` where the hub is asked for a tokenizer and does not answer.
    """
    if config.kind == "files":
        open_documents(config)
    if config.is_prepared:
        folder, shards = _fitting_shards(config)
        _shards_tokenizer(config, folder, shards.index, Path())
    elif config.tokenizer != "train":
        check_template(load_tokenizer(config, (), Path()), config)
    else:
        check_template(None, config)


def check_template(tokenizer: "transformers.PreTrainedTokenizerFast | None", config: DataConfig) -> None:
    """Raise `ValueError` where `config.records` need a given tokenizer, or a chat template, that is not there."""
    if config.records == "text":
        return
    allowed = f"a folder, file or hub name where data.records={config.records}"
    check(tokenizer is not None, "data.tokenizer", config.tokenizer, allowed)
    templated = config.records == "prompt" or getattr(tokenizer, "chat_template", None)
    check(templated, "data.records", config.records, "prompt, or text, where the tokenizer has no chat template")


def load_corpus(config: DataConfig, seed: int, cache_dir: Path) -> Corpus:
    """Make the corpus of `config` ready; `seed` orders its training sequences and nothing else.

    Documents are held out by their hash (about `config.validation_share` of them); of these the first are kept, up to 16 million
    characters. There are three ways to the sequences:

    - in memory: all is read, tokenised and packed now, 2 bytes a token for up to 65,536 states;
    - `config.is_prepared`: that has been done before, by `di4c prepare shards` or `features`, and the files are mapped;
    - `config.streaming`: training documents are read, tokenised, packed and mixed as they are needed. The validation is what the first
      2 million held-out characters give, of at most the first 64 million characters.

    Raises:
        ValueError: an absent, empty, damaged or too small corpus, or a tokenizer that cannot be had, or shards that were prepared with
            another tokenizer or length; each by its name.
        ConnectionError: the hub did not answer; the message names the offline way.
    """
    read = _from_shards if config.is_prepared else _from_texts
    return read(config, seed, cache_dir)


def sequences_of(config: DataConfig, tokenizer: "transformers.PreTrainedTokenizerFast") -> Int[Tensor, "N D"]:
    """All texts that `config` names as sequences, none of them held out. Raises `ValueError` where there is none."""
    documents = open_documents(config)
    return _as_tensor(_sequences(documents.read(), config, tokenizer, documents.name, "validation"))


def _sequences(
    texts: Iterable[str], config: DataConfig, tokenizer: "transformers.PreTrainedTokenizerFast", name: str, side: str
) -> Integer[np.ndarray, "N D"]:
    """Every sequence at once. Raises ValueError where there is none."""
    shown = iter(progress_bar(texts, desc=f"tokenise, {side}", unit=" documents", delay=2))
    frame = frame_of(tokenizer, wrap=config.wrap)
    tokens_ND = pack(encode_documents(shown, tokenizer), config.length, frame=frame)
    if not len(tokens_ND):
        share = "data.evaluator_share" if side == "evaluator's" else "data.validation_share"
        raise ValueError(
            f"{name}: the {side} documents hold fewer tokens than one sequence of data.length={config.length}: "
            f"give more text, a smaller data.length or another {share}"
        )
    return tokens_ND


def _as_tensor(tokens_ND: Integer[np.ndarray, "N *D"]) -> Int[Tensor, "N *D"]:
    return torch.from_numpy(tokens_ND.astype(np.int64))


def _from_texts(config: DataConfig, seed: int, cache_dir: Path) -> Corpus:
    documents = open_documents(config)
    if config.streaming:
        split = Split.by_share(config.validation_share)
    else:
        split = Split.fitted(documents, config.validation_share, config.evaluator_share)
    tokenizer = load_tokenizer(config, filter(split.trains, documents.read()), cache_dir)
    if config.records != "text":
        return _from_pairs(config, seed, documents, split, tokenizer)
    if config.streaming:
        texts = list(_early_held_out(documents, split, enough=16 * config.length))
    else:
        texts = list(first_characters(filter(split.holds_out, documents.read()), VALIDATION_CHARACTERS))
    check_lost(tokenizer, texts, config)
    validation_ND = _sequences(texts, config, tokenizer, documents.name, "validation")
    aside, content = None, hashlib.sha256(fingerprint(tokenizer).encode() + validation_ND.tobytes())
    if config.streaming:
        train = _stream(config, seed, documents, split, tokenizer)
        content.update(documents.name.encode())
    else:
        tokens_ND = _sequences(filter(split.trains, documents.read()), config, tokenizer, documents.name, "training")
        if config.evaluator_share:
            texts_aside = filter(split.evaluates, documents.read())
            aside = _as_tensor(_sequences(texts_aside, config, tokenizer, documents.name, "evaluator's"))
        train = PackedSource(tokens_ND, seed)
        content.update(tokens_ND.tobytes())
        apart = "" if aside is None else f", {len(aside)} for the evaluator alone"
        sizes = len(train), len(validation_ND)
        logger.info("%s: %d training and %d validation sequences%s", documents.name, *sizes, apart)
    return Corpus(
        name=documents.name,
        tokenizer=tokenizer,
        evaluator=aside,
        train=train,
        validation=_as_tensor(validation_ND),
        validation_texts=texts,
        fingerprint=content.hexdigest(),
    )


def _from_pairs(
    config: DataConfig,
    seed: int,
    documents: Documents,
    split: Split,
    tokenizer: "transformers.PreTrainedTokenizerFast",
) -> Corpus:
    """As `_from_texts`, of records with prompts: a sequence is a response behind its prompt."""
    check_template(tokenizer, config)
    pairs = pairs_of(config, tokenizer)
    if config.streaming:
        held_out = list(_early_held_out(documents, split, enough=16 * config.length))
    else:
        held_out = list(first_characters(filter(split.holds_out, documents.read()), VALIDATION_CHARACTERS))
    texts = list(map(pairs.plain, held_out))
    check_lost(tokenizer, texts, config)
    validation_NV = pairs.one_each(held_out)
    rows_NW = None if config.streaming else pairs.rows(filter(split.trains, documents.read()))
    pairs.warn(documents.name)
    for side, found in (("validation", validation_NV), ("training", rows_NW)):
        if found is not None and not len(found):
            raise ValueError(f"{documents.name}: the {side} records make no sequence")
    content = hashlib.sha256(fingerprint(tokenizer).encode() + validation_NV.tobytes())
    if rows_NW is None:
        train = _pair_stream(config, seed, documents, split, pairs)
        content.update(documents.name.encode())
    else:
        length = config.length
        states = np.dtype(row_dtype(max(len(tokenizer), length + 1)))
        tokens_ND, behind_NK = rows_NW[:, :length].astype(states), rows_NW[:, length:]
        if pairs.filling.has_parts:
            parts_ND = behind_NK.astype(states)
            train = PackedSource(tokens_ND, seed, parts_ND=parts_ND, grouped=bool(config.buckets))
        else:
            train = PackedSource(tokens_ND, seed, behind_NK[:, 0])
        logger.info("%s: %d training and %d validation sequences", documents.name, len(train), len(validation_NV))
        content.update(rows_NW.tobytes())
    return Corpus(
        name=documents.name,
        tokenizer=tokenizer,
        train=train,
        validation=_as_tensor(validation_NV[:, :-1]),
        validation_given=_as_tensor(validation_NV[:, -1]),
        validation_texts=texts,
        fingerprint=content.hexdigest(),
    )


def pairs_of(config: DataConfig, tokenizer: "transformers.PreTrainedTokenizerFast") -> Pairs:
    """How records become sequences."""
    how: dict[str, Any] = {"records": config.records, "length": config.length, "filling": config.filling}
    return Pairs(tokenizer=tokenizer, skip_bad=config.skip_bad, **how)


def _early_held_out(documents: Documents, split: Split, enough: int) -> Iterator[str]:
    """Held-out documents near the corpus' beginning; past `STREAMED_CHARACTERS` no more than `enough` characters take."""
    read = held = 0
    for text in documents.read():
        read += len(text)
        if split.holds_out(text):
            held += len(text)
            yield text
        if held >= STREAMED_VALIDATION_CHARACTERS or (read >= STREAMED_CHARACTERS and held >= enough):
            return


def _stream(
    config: DataConfig,
    seed: int,
    documents: Documents,
    split: Split,
    tokenizer: "transformers.PreTrainedTokenizerFast",
) -> StreamingSource:
    def open_runs(cursor: Cursor, rank: int, world_size: int) -> Iterator[Run]:
        walk = documents.walk(cursor.place, rank=rank, world_size=world_size)
        return encode_runs(walk, tokenizer, start=cursor, holds_out=split.holds_out)

    parts = [documents.identity, fingerprint(tokenizer), config.length, config.wrap, split.threshold]
    return StreamingSource(
        open_runs=open_runs,
        length=config.length,
        frame=frame_of(tokenizer, wrap=config.wrap),
        shuffle_buffer=config.shuffle_buffer,
        seed=seed,
        name=documents.name,
        identity=hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16],
    )


def _pair_stream(config: DataConfig, seed: int, documents: Documents, split: Split, pairs: Pairs) -> StreamingSource:
    """As `_stream`, of records with prompts."""
    states = np.dtype(row_dtype(max(len(pairs.tokenizer), config.length + 1)))

    def open_runs(cursor: Cursor, rank: int, world_size: int) -> Iterator[Run]:
        walk = documents.walk(cursor.place, rank=rank, world_size=world_size)
        for rows_nW, run in pair_runs(walk, pairs, start=cursor, holds_out=split.holds_out):
            yield dataclasses.replace(run, tokens_N=rows_nW.astype(states).ravel())

    def as_batch(
        rows_BW: Integer[np.ndarray, "B W"], sample_id: Int[np.ndarray, " B"], epoch: Int[np.ndarray, " B"]
    ) -> Batch:
        batch = make_batch(rows_BW[:, : config.length], sample_id, epoch)
        behind_BK = torch.from_numpy(rows_BW[:, config.length :].astype(np.int64))
        if config.filling.has_parts:
            return cut(dataclasses.replace(batch, parts=behind_BK))
        return dataclasses.replace(batch, given=behind_BK[:, 0])

    filling = config.filling.said()
    parts = [documents.identity, fingerprint(pairs.tokenizer), config.length, config.records, filling, split.threshold]
    return StreamingSource(
        open_runs=open_runs,
        length=config.filling.width(config.length),
        shuffle_buffer=config.shuffle_buffer,
        seed=seed,
        name=documents.name,
        identity=hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16],
        as_batch=as_batch,
    )


def verify_corpus(config: DataConfig, cache_dir: Path) -> None:
    """Read now, once for all ranks of this machine, the checksums that their `load_corpus` wants; it is that which tells of damage."""
    if config.is_prepared and config.path is not None and config.verify == "once":
        folder = Path(config.path).expanduser()
        with contextlib.suppress(ValueError):
            Shards.read(folder).damage(config.verify, cache_dir)


def _shards_tokenizer(
    config: DataConfig, folder: Path, index: Index, cache_dir: Path
) -> "transformers.PreTrainedTokenizerFast":
    own = str(folder / TOKENIZER)
    named = own if config.tokenizer == "train" else config.tokenizer
    tokenizer = load_tokenizer(dataclasses.replace(config, tokenizer=named), (), cache_dir)
    found = fingerprint(tokenizer)
    if found != index.coder:
        raise ValueError(
            f"data.tokenizer={named} is not the tokenizer of the shards in {folder}: expected {index.num_states} entries with fingerprint "
            f"{index.coder[:16]}, found {len(tokenizer)} with {found[:16]}. Allowed is data.tokenizer={own}, or train, which means it"
        )
    return tokenizer


def _fitting_shards(config: DataConfig) -> tuple[Path, Shards]:
    """The folder and what is in it, unverified. Raises `ValueError` for shards of another kind, or prepared in another way."""
    assert config.path is not None
    folder = Path(config.path).expanduser()
    shards = Shards.read(folder)
    index = shards.index
    kind = "tokens" if config.kind == "shards" else config.kind
    if index.kind != kind:
        raise ValueError(f"data.path must be a folder of {TOOLS[kind]}, got shards of {index.kind} in {folder}")
    filling = index.facts.get(FILLING, Filling().said())
    for key, here, there in (
        ("length", config.length, index.length),
        ("wrap", config.wrap, index.facts["wrap"]),
        ("records", config.records, index.facts.get("records", "text")),
        *((key, here, filling[key]) for key, here in config.filling.said().items()),
    ):
        if here != there:
            said = json.dumps(there)
            raise ValueError(
                f"data.{key}={json.dumps(here)}, but the shards in {folder} were prepared with {said}: say data.{key}={said}"
            )
    return folder, shards


def _from_shards(config: DataConfig, seed: int, cache_dir: Path) -> Corpus:
    folder, shards = _fitting_shards(config)
    tokenizer = _shards_tokenizer(config, folder, shards.index, cache_dir)
    plain = str
    if config.records != "text" and config.kind == "shards":
        plain = pairs_of(config, tokenizer).plain
    shards = shards.verified(config.verify, cache_dir, skip_bad=config.skip_bad)
    train = ShardSource(shards, seed) if config.kind == "shards" else FeatureSource(shards, seed)
    validation_NW, given_N = shards.validation(), None
    validation_ND = validation_NW[:, : shards.index.length]
    if config.records != "text":
        given_N = _as_tensor(config.filling.given_of(validation_NW, shards.index.length))
    logger.info("%s: %d training and %d validation sequences in shards", folder, len(train), len(validation_ND))
    return Corpus(
        name=f"data.path={folder}",
        tokenizer=tokenizer,
        train=train,
        validation=_as_tensor(validation_ND),
        validation_given=given_N,
        validation_texts=list(map(plain, read_held_out(folder))),
        fingerprint=shards.fingerprint,
    )
