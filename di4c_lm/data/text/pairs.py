"""Records of prompt and response, or of a chat, as sequences of which the prompt is given: it is never masked and never scored.

A document is the record as JSON, so that files, shards and the split by document are those of any text. Its sequence is the prompt, the
response, and EOS up to the length; a response's end and the EOS behind it are learned, as LLaDA does (Nie et al. 2025, appendix B.1). Of a
chat each answer of the assistant is a sequence, and all before it the prompt, by the tokenizer's own template.

`Filling` says what else a sequence may hold: several records one behind the other, or one that is filled up to a shorter length.
"""

import dataclasses
import functools
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np
from jaxtyping import Int64, Integer

from di4c_lm.data.text.documents import Walk
from di4c_lm.data.text.packing import Cursor, Run, plain_backend, token_id

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

Records = Literal["text", "prompt", "chat"]
# The fields of a record that make a document, as a `text_key` says them, and which kind of record that is.
RECORDS: dict[str, Records] = {"prompt+response": "prompt", "messages+": "chat"}
KEYS: dict[Records, str] = {kind: key for key, kind in RECORDS.items()}
_AT_ONCE = 256  # documents; what is packed together is of one such block
_SHOWN = 80  # characters of a record in an error


@final
@dataclasses.dataclass(frozen=True, kw_only=True)
class Filling:
    """How records fill rows: each one with EOS behind it, or as many as there is room for (`packing`), or to the next of `buckets`.

    With parts a row holds its tokens and as many numbers again, `Batch.parts`. Packed records do not see each other unless they are
    `joined`: then a row is one record to the network.
    """

    packing: bool = False
    joined: bool = False
    buckets: tuple[int, ...] = ()

    @property
    def has_parts(self) -> bool:
        """Whether rows say of each token what it is a part of."""
        return self.packing or bool(self.buckets)

    def said(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"packing": self.packing, "joined": self.joined, "buckets": list(self.buckets)}

    def width(self, length: int) -> int:
        """Numbers a row."""
        return 2 * length if self.has_parts else length + 1

    def filled(self, used: int, length: int) -> int:
        """Up to where a record of `used` tokens is filled up by EOS that is learned."""
        return next((size for size in self.buckets if size > used), length)

    def held_out(
        self, tokens_ND: Int64[np.ndarray, "N D"], given_N: Int64[np.ndarray, " N"]
    ) -> Int64[np.ndarray, "N W"]:
        """Rows of one record each, of which so many tokens are given, in the layout of all rows."""
        if not self.has_parts:
            return np.concatenate([tokens_ND, given_N[:, None]], 1)
        is_given_ND = np.arange(tokens_ND.shape[1]) < given_N[:, None]
        return np.concatenate([tokens_ND, 2 + is_given_ND], 1)

    def parts_of(
        self, tokens_ND: Int64[np.ndarray, "N D"], given_N: Int64[np.ndarray, " N"], eos: int
    ) -> Int64[np.ndarray, "N D"]:
        """`Batch.parts` of rows of one record each, EOS behind it: what these rows would learn of it, and what of it is padding."""
        place_D, length = np.arange(tokens_ND.shape[1]), tokens_ND.shape[1]
        is_given_ND = place_D < given_N[:, None]
        ends_ND = (tokens_ND == eos) & ~is_given_ND
        used_N = np.where(ends_ND.any(1), ends_ND.argmax(1), length)
        ends = [min(used + 1, length) if self.packing else self.filled(used, length) for used in used_N.tolist()]
        end_N = np.array(ends)
        return np.where(place_D < end_N[:, None], 2 + is_given_ND, 0)

    def given_of(self, rows_NW: Integer[np.ndarray, "N W"], length: int) -> Int64[np.ndarray, " N"]:
        """How many tokens are given of rows of one record each."""
        behind_NK = rows_NW[:, length : self.width(length)].astype(np.int64)
        return (behind_NK == 3).sum(1) if self.has_parts else behind_NK[:, 0]


@final
@dataclasses.dataclass(kw_only=True)
class Pairs:
    """How records become sequences of `length`; `skipped` counts those that did not, where `skip_bad` says so."""

    tokenizer: "transformers.PreTrainedTokenizerFast"
    records: Records
    length: int
    skip_bad: bool = False
    skipped: int = 0
    filling: Filling = Filling()

    def rows(self, documents: Iterable[str]) -> Int64[np.ndarray, "N W"]:
        """The sequences of all documents, and behind each the number of its tokens that are given (W = length + 1), or their parts.

        Raises `ValueError` that shows the record: an empty response, one that is too long with its prompt, a chat without an answer, or
        whose template fails.
        """
        found: list[list[int]] = []
        walk = iter(documents)
        while block := list(itertools.islice(walk, _AT_ONCE)):
            found += self._laid_out([pair for document in block for pair in self._pairs(document)])
        return np.array(found, dtype=np.int64).reshape(-1, self.filling.width(self.length))

    def one_each(self, documents: Iterable[str]) -> Int64[np.ndarray, "N V"]:
        """The same with one record a row, EOS behind it, and the number of tokens that are given: V = length + 1."""
        plain = dataclasses.replace(self, filling=Filling())
        rows_NV = plain.rows(documents)
        self.skipped = plain.skipped
        return rows_NV

    def plain(self, document: str) -> str:
        """The words of a record, for statistics of characters."""
        record = json.loads(document)
        words = record.values() if self.records == "prompt" else (one["content"] for one in record["messages"])
        return "\n".join(map(str, words))

    def warn(self, name: str) -> None:
        """Say how many records were skipped."""
        if self.skipped:
            logger.warning("%s: %d records that make no sequence were skipped", name, self.skipped)

    def _pairs(self, document: str) -> list[tuple[list[int], list[int]]]:
        """Prompts and responses, each of at least one token and all of at most `length` together."""
        try:
            pairs = self._of_prompt(document) if self.records == "prompt" else self._of_chat(document)
            for pair in pairs:
                self._check(*pair)
            return pairs
        except ValueError as error:
            if self.skip_bad:
                self.skipped += 1
                return []
            said = "data.skip_bad=true skips and counts such records"
            raise ValueError(f"the record {document[:_SHOWN]!r}: {error} ({said})") from error

    def _check(self, prompt: list[int], response: list[int]) -> None:
        if len(prompt) + len(response) > self.length:
            raise ValueError(
                f"prompt and response must have at most data.length={self.length} tokens, got {len(prompt)} and {len(response)}"
            )

    def _laid_out(self, pairs: list[tuple[list[int], list[int]]]) -> list[list[int]]:
        """Rows of these records, the longest first where they are packed: each goes to the first row with room for it and an EOS."""
        eos, filling, length = token_id(self.tokenizer.eos_token_id), self.filling, self.length
        used = [len(prompt) + len(response) for prompt, response in pairs]
        if not filling.has_parts:
            ends = [[eos] * (length - size) for size in used]
            return [[*p, *r, *end, len(p)] for (p, r), end in zip(pairs, ends, strict=True)]
        sizes = [min(size + 1, length) if filling.packing else filling.filled(size, length) for size in used]
        rows: list[tuple[list[int], list[int], int]] = []  # tokens, parts, and how many records
        for number in sorted(range(len(pairs)), key=lambda n: -sizes[n]) if filling.packing else range(len(pairs)):
            (prompt, response), size = pairs[number], sizes[number]
            fits = (n for n, (tokens, _, _) in enumerate(rows) if filling.packing and len(tokens) + size <= length)
            place = next(fits, len(rows))
            tokens, parts, count = rows[place] if place < len(rows) else ([], [], 0)
            part = 2 * (1 if filling.joined else count + 1)
            tokens = [*tokens, *prompt, *response, *[eos] * (size - used[number])]
            parts = [*parts, *[part + 1] * len(prompt), *[part] * (size - len(prompt))]
            rows[place : place + 1] = [(tokens, parts, count + 1)]
        return [
            [*tokens, *[eos] * (length - len(tokens)), *parts, *[0] * (length - len(parts))]
            for tokens, parts, _ in rows
        ]

    def _of_prompt(self, document: str) -> list[tuple[list[int], list[int]]]:
        record = json.loads(document)
        if not record["response"].strip():
            raise ValueError("the response must hold text, got an empty one")
        prompt, response = self._backend.encode_batch([record["prompt"], record["response"]], add_special_tokens=False)
        return [(prompt.ids, response.ids)]

    def _of_chat(self, document: str) -> list[tuple[list[int], list[int]]]:
        messages = json.loads(document)["messages"]
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            raise ValueError("messages must hold one of the role 'assistant', got none")
        return [self._answer(messages[:number], messages[number]) for number in answers]

    def _answer(self, before: list[dict[str, str]], message: dict[str, str]) -> tuple[list[int], list[int]]:
        if not message["content"].strip():
            raise ValueError("the response must hold text, got an empty one")
        prompt = templated(self.tokenizer, before, add_generation_prompt=True)
        whole = templated(self.tokenizer, [*before, message], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ValueError(
                "the chat template must continue a prompt by its answer, got another beginning with the answer"
            )
        prompt_ids, response_ids = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole[len(prompt) :])
        )
        return list(prompt_ids), list(response_ids)

    @functools.cached_property
    def _backend(self) -> Any:
        return plain_backend(self.tokenizer)


def templated(
    tokenizer: "transformers.PreTrainedTokenizerFast", messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    """Messages as the tokenizer's chat template writes them. Raises `ValueError` where there is none, or it fails."""
    import jinja2

    if not tokenizer.chat_template:
        raise ValueError("the tokenizer must have a chat template, got one without")
    try:
        text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (ValueError, TypeError, KeyError, jinja2.TemplateError) as error:
        raise ValueError(f"the tokenizer's chat template fails: {type(error).__name__}: {error}") from error
    return text


def check_record(record: Any, records: Records) -> str:
    """A record as a document. Raises `ValueError` that says what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object was expected, found {type(record).__name__}")
    names = [name for name in KEYS[records].split("+") if name]
    if lacking := [name for name in names if name not in record]:
        raise ValueError(f"no key {lacking[0]!r} (data.records={records}), found {sorted(record)}")
    if records == "prompt":
        if odd := [name for name in names if not isinstance(record[name], str)]:
            raise ValueError(f"the value of {odd[0]!r} is not a text but {type(record[odd[0]]).__name__}")
        return json.dumps({name: record[name] for name in names}, ensure_ascii=False)
    messages = record["messages"]
    fits = isinstance(messages, list) and all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str)
        for one in messages
    )
    if not fits:
        raise ValueError("the value of 'messages' is not a list of objects with the texts 'role' and 'content'")
    kept = [{"role": one["role"], "content": one["content"]} for one in messages]
    return json.dumps({"messages": kept}, ensure_ascii=False)


def pair_runs(
    walk: Walk, pairs: Pairs, *, start: Cursor, holds_out: Callable[[str], bool]
) -> Iterator[tuple[Int64[np.ndarray, "n W"], Run]]:
    """The sequences of the documents of `walk` but those held out, some documents at a time, each with where to resume behind them."""
    cursor, texts, held_out = start, [], []

    def made() -> tuple[Int64[np.ndarray, "n W"], Run]:
        rows_nW = pairs.rows(texts)
        return rows_nW, Run(tokens_N=rows_nW[:, : pairs.length].ravel(), cursor=cursor, held_out=list(held_out))

    for place, text in walk:
        cursor = dataclasses.replace(cursor, place=place)
        if text is None:
            break
        cursor = dataclasses.replace(cursor, text_bytes=cursor.text_bytes + len(text.encode()))
        if holds_out(text):
            held_out.append(text)
            cursor = dataclasses.replace(cursor, held_out=cursor.held_out + 1)
        else:
            texts.append(text)
            cursor = dataclasses.replace(cursor, documents=cursor.documents + 1)
        if len(texts) + len(held_out) == _AT_ONCE:
            yield made()
            texts, held_out = [], []
    yield made()
