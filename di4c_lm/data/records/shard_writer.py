"""Writes the folders that `shards` reads: one pass over a corpus, in memory that does not grow with it, and cut at any moment without loss.

After each shard `state.json` is replaced by one rename: shards finished, the cursor in the corpus, and the tokens before it that are in no
shard yet. What a killed run wrote past that is made again, byte for byte. `index.json` comes last and makes the folder usable.
"""

import base64
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Integer

from di4c_lm.data.records.shards import (
    FORMAT,
    INDEX,
    TOKENIZER,
    VALIDATION,
    VALIDATION_TEXTS,
    Index,
    Shard,
    file_checksum,
    read_held_out,
    replace_file,
)
from di4c_lm.data.text.documents import VALIDATION_CHARACTERS, Documents, Split
from di4c_lm.data.text.packing import Cursor, Rows, Run, encode_documents, encode_runs, pack, token_dtype, token_id
from di4c_lm.data.text.tokenizers import fingerprint

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

STATE = "state.json"
Report = Callable[[Cursor, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tokens are laid out. `shard_tokens`: about so many a file."""

    length: int
    wrap: bool
    shard_tokens: int
    validation_share: float

    @property
    def sequences(self) -> int:
        """Of a full shard."""
        return max(1, self.shard_tokens // self.length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    """What is finished, and where to go on."""

    cursor: Cursor = Cursor()
    shards: tuple[Shard, ...] = ()
    rows: str = ""  # sequences before the cursor that are in no finished shard: base64
    rest: str = ""  # tokens behind these, less than a sequence: base64
    held_out_bytes: int = 0  # of the file of held-out documents
    held_out_characters: int = 0

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "State":
        """The counterpart of `dataclasses.asdict`."""
        shards = tuple(Shard(**shard) for shard in plain["shards"])
        return cls(**{**plain, "cursor": Cursor.from_state(plain["cursor"]), "shards": shards})


class _OpenShard:
    """A shard that is being filled under a temporary name; its checksum grows with it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"train_{number:05d}.bin"
        self.sequences = self.size = 0
        self._path = folder / self.name
        self._digest = hashlib.blake2b(digest_size=16)
        self._file = open(self._path.with_name(f"{self.name}.tmp"), "wb")  # noqa: SIM115 (closed by finish or abandon)

    def append(self, block_ND: Integer[np.ndarray, "n D"]) -> None:
        content = block_ND.astype(block_ND.dtype.newbyteorder("<")).tobytes()
        self._file.write(content)
        self._digest.update(content)
        self.sequences += len(block_ND)
        self.size += len(content)

    def finish(self) -> Shard:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self._path)
        return Shard(name=self.name, sequences=self.sequences, size=self.size, blake2b=self._digest.hexdigest())

    def abandon(self) -> None:
        self._file.close()
        os.unlink(self._file.name)


class ShardWriter:
    """One folder, from the first document to the index."""

    def __init__(
        self,
        folder: Path,
        documents: Documents,
        tokenizer: "transformers.PreTrainedTokenizerFast",
        layout: Layout,
        source: dict[str, Any],
    ) -> None:
        self._folder, self._documents, self._tokenizer, self._layout = folder, documents, tokenizer, layout
        self._dtype = np.dtype(token_dtype(len(tokenizer))).newbyteorder("<")
        self._frame = (token_id(tokenizer.bos_token_id), token_id(tokenizer.eos_token_id)) if layout.wrap else None
        self._made_by = {
            "source": {**source, "identity": documents.identity},
            "layout": dataclasses.asdict(layout),
            "tokenizer": fingerprint(tokenizer),
        }

    def resume(self) -> State:
        """Where an earlier run stopped, or the beginning.

        Raises `ValueError` where that run had another corpus, tokenizer or layout, or its state is damaged.
        """
        path = self._folder / STATE
        if not path.exists():
            return State()
        try:
            plain = json.loads(path.read_bytes())
            made_by, state = plain["made_by"], State.from_plain(plain["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged: {error}: begin again in an empty folder") from error
        self.check(made_by)
        for shard in state.shards:
            file = self._folder / shard.name
            if not file.exists() or file.stat().st_size != shard.size:
                raise ValueError(
                    f"{file}: expected {shard.size} bytes from an earlier run: begin again in an empty folder"
                )
        return state

    def check(self, made_by: dict[str, Any]) -> None:
        """Raise `ValueError` unless `made_by` is what this writer is made of."""
        for key, here in self._made_by.items():
            if made_by[key] != here:
                raise ValueError(
                    f"{self._folder} holds shards made with {key} {made_by[key]}, now it is {here}: "
                    "go on with the same, or begin in an empty folder"
                )

    def write(self, state: State, report: Report = lambda cursor, tokens: None) -> Index:
        """All that is left after `state`. `report(cursor, tokens)` is told where it begins, and after each run of
        documents the tokens made since.

        Raises `ValueError` for a corpus that is empty, damaged or too small for one sequence on either side, `OSError` where writing fails
        (a full disk): what was finished stays, and the next run goes on from there.
        """
        for left_over in self._folder.glob("*.tmp"):
            left_over.unlink()
        rows = Rows(self._layout.length, self._frame, self._tokens(state.rest))
        shard, tokens = _OpenShard(self._folder, len(state.shards)), 0
        report(state.cursor, tokens)
        with _held_out_file(self._folder / VALIDATION_TEXTS, state.held_out_bytes) as held_out:
            shard.append(self._tokens(state.rows).reshape(-1, self._layout.length))
            for run in self._runs(state):
                block_ND, finished = rows.push(run.tokens_N), list(state.shards)
                while shard.sequences + len(block_ND) >= self._layout.sequences:
                    room = self._layout.sequences - shard.sequences
                    shard.append(block_ND[:room])
                    block_ND = block_ND[room:]
                    finished.append(shard.finish())
                    shard = _OpenShard(self._folder, len(finished))
                shard.append(block_ND)
                is_new = len(finished) > len(state.shards)
                state = _with_held_out(state, run.held_out, held_out)
                state = dataclasses.replace(state, cursor=run.cursor, shards=tuple(finished))
                if is_new:
                    os.fsync(held_out.fileno())
                    self._commit(state, block_ND, rows.rest_N)
                tokens += len(run.tokens_N)
                report(run.cursor, tokens)
        if shard.sequences:
            state = dataclasses.replace(state, shards=(*state.shards, shard.finish()))
        else:
            shard.abandon()
        return self._finish(state, len(rows.rest_N))

    def _runs(self, state: State) -> Iterator[Run]:
        split = Split.by_share(self._layout.validation_share)
        walk = self._documents.walk(state.cursor.place)
        return encode_runs(walk, self._tokenizer, start=state.cursor, holds_out=split.holds_out)

    def _tokens(self, text: str) -> Integer[np.ndarray, " N"]:
        return np.frombuffer(base64.b64decode(text), self._dtype)

    def _text(self, tokens: Integer[np.ndarray, "..."]) -> str:
        return base64.b64encode(tokens.astype(self._dtype).tobytes()).decode()

    def _commit(self, state: State, block_ND: Integer[np.ndarray, "n D"], rest_N: Integer[np.ndarray, " N"]) -> None:
        """Make `state` the one to go on from, with what of its tokens is in no finished shard."""
        state = dataclasses.replace(state, rows=self._text(block_ND), rest=self._text(rest_N))
        plain = {"made_by": self._made_by, "state": dataclasses.asdict(state)}
        replace_file(self._folder / STATE, json.dumps(plain).encode())

    def _finish(self, state: State, dropped: int) -> Index:
        """The validation's sequences, then the index, then the end of the state."""
        cursor, name, length = state.cursor, self._documents.name, self._layout.length
        for side, sequences, texts in (
            ("training", sum(shard.sequences for shard in state.shards), cursor.documents),
            ("validation", self._write_validation(), cursor.held_out),
        ):
            if not sequences:
                raise ValueError(
                    f"{name}: the {texts} {side} documents hold fewer tokens than one sequence of length={length}: give more text, "
                    "a smaller length or another validation_share, and an empty folder"
                )
        path = self._folder / VALIDATION
        size = path.stat().st_size
        index = Index(
            format=FORMAT,
            length=length,
            wrap=self._layout.wrap,
            dtype=self._dtype.str,
            num_states=len(self._tokenizer),
            eos_id=token_id(self._tokenizer.eos_token_id),
            tokenizer=self._made_by["tokenizer"],
            made_by=self._made_by,
            counts={
                "documents": cursor.documents,
                "held_out": cursor.held_out,
                "split": cursor.split,
                "replaced": cursor.place.replaced,
                "skipped": cursor.place.skipped,
                "text_bytes": cursor.text_bytes,
                "tokens": sum(shard.sequences for shard in state.shards) * length,
                "dropped_tokens": dropped,
            },
            train=state.shards,
            validation=Shard(
                name=VALIDATION,
                sequences=size // (length * self._dtype.itemsize),
                size=size,
                blake2b=file_checksum(path),
            ),
        )
        index.write(self._folder)
        (self._folder / STATE).unlink(missing_ok=True)
        return index

    def _write_validation(self) -> int:
        """Tokenise and pack the held-out documents that are kept. Returns the number of sequences."""
        blocks = pack(
            encode_documents(read_held_out(self._folder), self._tokenizer), self._layout.length, frame=self._frame
        )
        content = [block_ND.astype(self._dtype) for block_ND in blocks]
        replace_file(self._folder / VALIDATION, b"".join(block_ND.tobytes() for block_ND in content))
        return sum(len(block_ND) for block_ND in content)


def _held_out_file(path: Path, size: int) -> IO[bytes]:
    """The file of held-out documents, cut to what belongs to the state, its end to be written on."""
    file = open(path, "r+b" if size else "wb")  # noqa: SIM115 (the caller closes it)
    file.truncate(size)
    file.seek(size)
    return file


def _with_held_out(state: State, texts: Iterable[str], file: IO[bytes]) -> State:
    """Append `texts`, as long as there is room for more held-out text."""
    size, characters = state.held_out_bytes, state.held_out_characters
    for text in texts:
        if characters < VALIDATION_CHARACTERS:
            size += file.write(json.dumps({"text": text}).encode() + b"\n")
            characters += len(text)
    file.flush()
    return dataclasses.replace(state, held_out_bytes=size, held_out_characters=characters)


def prepare(
    folder: Path,
    documents: Documents,
    tokenizer: "transformers.PreTrainedTokenizerFast",
    layout: Layout,
    source: dict[str, Any],
    report: Report = lambda cursor, tokens: None,
) -> Index:
    """Make `folder` a folder of shards, or go on with it; where it is one already, of the same corpus and settings, only say what it holds.

    `source` says what is read, for the index and for the check on going on. Errors as `ShardWriter`; `ValueError` too where the folder
    holds other files.
    """
    writer = ShardWriter(folder, documents, tokenizer, layout, source)
    if (folder / INDEX).exists():
        index = Index.read(folder)
        writer.check(index.made_by)
        logger.info("%s is prepared already", folder)
        return index
    state = writer.resume()
    if state == State() and folder.is_dir():
        ours = (TOKENIZER, VALIDATION, VALIDATION_TEXTS)
        other = [path.name for path in folder.iterdir() if path.name not in ours and not path.name.startswith("train_")]
        if other:
            raise ValueError(f"{folder} holds {other[0]}, which is no part of shards: choose an empty or absent folder")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder / TOKENIZER))
    if state.shards:
        logger.info("going on behind %d shards and %d documents", len(state.shards), state.cursor.documents)
    return writer.write(state, report)
