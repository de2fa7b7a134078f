"""Documents to sequences of equal length: split what is huge, tokenise in batches, join by EOS, cut."""

import dataclasses
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import Integer

from di4c_lm.data.records.shards import row_dtype
from di4c_lm.data.text.documents import Place, Walk

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

T = TypeVar("T")
PIECE_CHARACTERS = 1 << 17
BATCH_CHARACTERS = 1 << 20
_WORD_END = re.compile(r"\S(?=\s)")


def split_document(text: str, limit: int) -> Iterator[str]:
    """Cut `text` into pieces of at most `limit` characters whose concatenation is `text`.

    A cut falls before white space that follows a word, where a byte-level BPE like GPT-2's cuts in any case, so that
    the tokens are those of the whole; only a stretch of `limit` characters without such a place is cut anywhere.
    """
    start = 0
    while len(text) - start > limit:
        half = start + limit // 2
        cuts = [match.end() for match in _WORD_END.finditer(text, half, start + limit)]
        end = cuts[-1] if cuts else start + limit
        yield text[start:end]
        start = end
    yield text[start:]


def token_id(value: object) -> int:
    """A special token's id, which `transformers` types loosely."""
    assert isinstance(value, int)
    return value


def frame_of(tokenizer: "transformers.PreTrainedTokenizerFast", *, wrap: bool) -> tuple[int, int] | None:
    """What stands around each sequence: (BOS, EOS) with `wrap`."""
    return (token_id(tokenizer.bos_token_id), token_id(tokenizer.eos_token_id)) if wrap else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where tokenising resumes, `pieces` pieces into the document behind `place`, and what was counted in the documents before."""

    place: Place = Place()
    pieces: int = 0
    documents: int = 0  # tokenised, of this rank
    held_out: int = 0  # documents, of this rank
    split: int = 0  # documents that came in pieces
    text_bytes: int = 0  # UTF-8, tokenised or held out

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Cursor":
        """The counterpart of `state_dict`."""
        return cls(**{**state, "place": Place(**state["place"])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Tokens that follow each other, where to resume behind them, and the texts that were held out on the way."""

    tokens_N: Integer[np.ndarray, " N"]
    cursor: Cursor
    held_out: list[str]


@dataclasses.dataclass(kw_only=True)
class _Batch:
    cursor: Cursor
    pieces: list[str] = dataclasses.field(default_factory=list)
    ends: list[bool] = dataclasses.field(default_factory=list)
    held_out: list[str] = dataclasses.field(default_factory=list)


def _batches(walk: Walk, start: Cursor, holds_out: Callable[[str], bool]) -> Iterator[_Batch]:
    """Pieces of documents, and which of them end a document, about `BATCH_CHARACTERS` characters at once."""
    batch, held, cursor = _Batch(cursor=start), 0, start
    for place, text in walk:
        if text is None:
            cursor = dataclasses.replace(cursor, place=place)
            break
        after = dataclasses.replace(
            cursor,
            place=place,
            pieces=0,
            text_bytes=cursor.text_bytes + (len(text) if text.isascii() else len(text.encode())),
        )
        if holds_out(text):
            batch.held_out.append(text)
            cursor, held = dataclasses.replace(after, held_out=after.held_out + 1), held + len(text)
            continue
        pieces = list(split_document(text, PIECE_CHARACTERS)) if len(text) > PIECE_CHARACTERS else [text]
        done = cursor.pieces
        for number, piece in enumerate(pieces[done:], start=done + 1):
            last = number == len(pieces)
            batch.pieces.append(piece)
            batch.ends.append(last)
            held += len(piece)
            if not last:
                cursor = dataclasses.replace(cursor, pieces=number)
            else:
                cursor = dataclasses.replace(
                    after, documents=after.documents + 1, split=after.split + (len(pieces) > 1)
                )
            if held >= BATCH_CHARACTERS:
                batch.cursor = cursor
                yield batch
                batch, held = _Batch(cursor=cursor), 0
    batch.cursor = cursor
    yield batch


def plain_backend(tokenizer: "transformers.PreTrainedTokenizerFast") -> Any:
    """What cuts text into tokens, to which a special token's name is text as any other."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return backend


def encode_runs(
    walk: Walk,
    tokenizer: "transformers.PreTrainedTokenizerFast",
    *,
    start: Cursor | None = None,
    holds_out: Callable[[str], bool] = lambda text: False,
) -> Iterator[Run]:
    """The tokens of all documents of `walk` but those that `holds_out` takes, EOS after each, as one long line in runs of some 10^5 tokens.

    `walk` begins at `start.place`. The last run ends the corpus and may be empty. A special token's name inside a text is plain text
    there. `tokenizers` works on all cores, while the next documents are read. Memory does not grow with the corpus, nor with a document
    beyond its text and pieces.
    """
    backend = plain_backend(tokenizer)
    eos = [token_id(tokenizer.eos_token_id)]
    dtype = np.dtype(row_dtype(len(tokenizer)))
    batches = prefetched(_batches(walk, start or Cursor(), holds_out))
    encoded = ((batch, backend.encode_batch_fast(batch.pieces, add_special_tokens=False)) for batch in batches)
    for batch, encodings in prefetched(encoded, depth=1):
        parts = [
            np.array(e.ids + eos if end else e.ids, dtype=dtype) for e, end in zip(encodings, batch.ends, strict=True)
        ]
        tokens_N = np.concatenate(parts) if parts else np.empty(0, dtype)
        yield Run(tokens_N=tokens_N, cursor=batch.cursor, held_out=batch.held_out)


def encode_documents(
    documents: Iterable[str], tokenizer: "transformers.PreTrainedTokenizerFast"
) -> Iterator[Integer[np.ndarray, " N"]]:
    """The tokens of all documents, EOS after each, as one long line that comes in runs; see `encode_runs`."""
    walk: Walk = ((Place(), text) for text in documents)
    return (run.tokens_N for run in encode_runs(walk, tokenizer) if len(run.tokens_N))


class Rows:
    """A line of tokens cut into sequences of `length`; `rest_N` is what does not make one yet.

    `frame=(bos, eos)` puts these two around each sequence, within its length (MDLM and SDTT, `wrap=True`).
    """

    def __init__(
        self, length: int, frame: tuple[int, int] | None = None, rest_N: Integer[np.ndarray, " N"] | None = None
    ) -> None:
        self._body = length - 2 if frame else length
        self._frame = frame
        self.rest_N = np.empty(0, dtype=np.uint16) if rest_N is None else rest_N
        if self._body < 1:
            raise ValueError(f"data.length must be at least 3 where data.wrap=true, got {length}")

    def push(self, run_N: Integer[np.ndarray, " N"]) -> Integer[np.ndarray, "n D"]:
        """The sequences (n, length) that `run_N` completes, perhaps none."""
        line_N = np.concatenate([self.rest_N, run_N]) if len(self.rest_N) else run_N
        used = len(line_N) // self._body * self._body
        self.rest_N = line_N[used:].copy()
        block_ND = line_N[:used].reshape(-1, self._body)
        return np.pad(block_ND, ((0, 0), (1, 1)), constant_values=(self._frame,)) if self._frame else block_ND


def pack(
    runs: Iterable[Integer[np.ndarray, " N"]], length: int, *, frame: tuple[int, int] | None = None
) -> Integer[np.ndarray, "N D"]:
    """A line of tokens cut into sequences; `frame` as in `Rows`. What is left at the end, less than one, is dropped and logged."""
    rows = Rows(length, frame)
    blocks = [rows.push(run) for run in runs]
    if len(rows.rest_N):
        logger.info("%d tokens at the end, less than a sequence of %d, are left out", len(rows.rest_N), length)
    return np.concatenate(blocks) if blocks else np.empty((0, length), np.uint16)


def prefetched(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """`items` in their order, up to `depth` + 1 of them made ahead; an error in making one is raised in its place.

    Of use where making an item releases the interpreter's lock, as `tokenizers`, compression and reading do. Closing the
    iterator ends the thread after the item it is at.
    """
    iterator: Iterator[Any] = iter(items)
    end: Any = object()
    pool = ThreadPoolExecutor(1)
    try:
        ready = deque(pool.submit(next, iterator, end) for _ in range(depth + 1))
        while (item := ready.popleft().result()) is not end:
            ready.append(pool.submit(next, iterator, end))
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
