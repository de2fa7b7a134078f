"""Documents to sequences of equal length: split what is huge, tokenise in batches, join by EOS, cut."""

import logging
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

PIECE_CHARACTERS = 1 << 17
BATCH_CHARACTERS = 1 << 20
_WORD_END = re.compile(r"\S(?=\s)")


def split_document(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
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


def token_dtype(num_states: int) -> type[np.unsignedinteger]:
    """The smallest of uint16 and uint32 that holds `num_states` ids."""
    return np.uint16 if num_states <= 1 << 16 else np.uint32


def _batches(documents: Iterable[str]) -> Iterator[tuple[list[str], list[bool]]]:
    """Pieces of documents, and which of them end a document, about `BATCH_CHARACTERS` characters at once."""
    pieces: list[str] = []
    ends: list[bool] = []
    held = 0
    for text in documents:
        split = list(split_document(text)) if len(text) > PIECE_CHARACTERS else [text]
        for number, piece in enumerate(split, start=1):
            pieces.append(piece)
            ends.append(number == len(split))
            held += len(piece)
            if held >= BATCH_CHARACTERS:
                yield pieces, ends
                pieces, ends, held = [], [], 0
    if pieces:
        yield pieces, ends


def encode_documents(
    documents: Iterable[str], tokenizer: "transformers.PreTrainedTokenizerFast"
) -> Iterator[Integer[np.ndarray, " N"]]:
    """The tokens of all documents, EOS after each, as one long line that comes in runs of some 10^5 tokens.

    A special token's name inside a text is plain text there. Memory does not grow with the corpus, nor with a
    document beyond its text.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    eos = [token_id(tokenizer.eos_token_id)]
    dtype = token_dtype(len(tokenizer))
    for pieces, ends in _batches(documents):
        encodings = backend.encode_batch_fast(pieces, add_special_tokens=False)
        yield np.concatenate(
            [np.array(e.ids + eos if end else e.ids, dtype=dtype) for e, end in zip(encodings, ends, strict=True)]
        )


def pack(
    runs: Iterable[Integer[np.ndarray, " N"]], length: int, *, frame: tuple[int, int] | None = None
) -> Iterator[Integer[np.ndarray, "n D"]]:
    """Cut a line of tokens into sequences of `length`, in blocks (n, length).

    What is left at the end, less than one sequence, is dropped and logged. `frame=(bos, eos)` puts these two around
    each sequence, within its length (MDLM and SDTT, `wrap=True`).
    """
    body = length - 2 if frame else length
    if body < 1:
        raise ValueError(f"data.length={length} is impossible: with data.wrap=true at least 3")
    rest = np.empty(0, dtype=np.uint16)
    for run in runs:
        rest = np.concatenate([rest, run]) if len(rest) else run
        whole = len(rest) // body
        if whole:
            block_ND = rest[: whole * body].reshape(whole, body)
            yield np.pad(block_ND, ((0, 0), (1, 1)), constant_values=(frame,)) if frame else block_ND
            rest = rest[whole * body :]
    if len(rest):
        logger.info("the last %d tokens, less than a sequence, were dropped", len(rest))
