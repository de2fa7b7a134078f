"""A corpus tokenised and packed once, into a folder of shards (`data/records/shards.py`) with beside them

validation.jsonl      the held-out documents
tokenizer/            as `save_pretrained` writes it
"""

import base64
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Integer

from di4c_lm.core.files import write_bytes
from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.data.records.shards import Index, Shard, blake2b
from di4c_lm.data.records.writer import LOCK, STATE, ShardWriter, row_dtype, writing
from di4c_lm.data.text.documents import VALIDATION_CHARACTERS, Documents, Split
from di4c_lm.data.text.packing import Cursor, Rows, encode_documents, encode_runs, pack, token_id

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

TOKENIZER, VALIDATION, VALIDATION_TEXTS = "tokenizer", "validation.bin", "validation.jsonl"
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


def prepare(
    folder: Path,
    documents: Documents,
    tokenizer: "transformers.PreTrainedTokenizerFast",
    layout: Layout,
    source: dict[str, Any],
    report: Report = lambda cursor, tokens: None,
) -> Index:
    """Make `folder` a folder of shards, or resume it; where it is one already, of the same corpus and settings, only say what it holds.

    Args:
        source: what is read, for the index and for the check on resuming.
        report: is given where this call begins, and after each run of documents the tokens made since.

    Raises:
        ValueError: the folder holds other files or other shards; the corpus is empty, damaged or too small for one sequence on either side.
        OSError: writing fails (a full disk). What was finished stays, and the next call resumes behind it.
    """
    with writing(folder):
        return _prepare(folder, documents, tokenizer, layout, source, report)


def _prepare(
    folder: Path,
    documents: Documents,
    tokenizer: "transformers.PreTrainedTokenizerFast",
    layout: Layout,
    source: dict[str, Any],
    report: Report,
) -> Index:
    made_by = {
        "source": {**source, "identity": documents.identity},
        "layout": dataclasses.asdict(layout),
        "tokenizer": fingerprint(tokenizer),
    }
    dtype, length = row_dtype(len(tokenizer)), layout.length
    writer = ShardWriter(folder, dtype=dtype, width=length, shard_rows=layout.sequences, made_by=made_by)
    if writer.finished is not None:
        logger.info("%s is prepared already", folder)
        return writer.finished
    place = writer.place or {"cursor": Cursor().state_dict(), "rest": "", "bytes": 0, "characters": 0}
    if writer.place is None:
        ours = (TOKENIZER, VALIDATION, VALIDATION_TEXTS, LOCK, STATE)
        other = [path.name for path in folder.iterdir() if path.name not in ours and not path.name.startswith("train_")]
        if other:
            raise ValueError(f"{folder} holds {other[0]}, which is no part of shards: choose an empty or absent folder")
    else:
        logger.info("resuming behind %d shards and %d documents", len(writer.shards), place["cursor"]["documents"])
    tokenizer.save_pretrained(str(folder / TOKENIZER))
    frame = (token_id(tokenizer.bos_token_id), token_id(tokenizer.eos_token_id)) if layout.wrap else None
    rows = Rows(length, frame, np.frombuffer(base64.b64decode(place["rest"]), dtype))
    cursor, tokens, size, characters = Cursor.from_state(place["cursor"]), 0, place["bytes"], place["characters"]
    report(cursor, tokens)
    split = Split.by_share(layout.validation_share)
    runs = encode_runs(documents.walk(cursor.place), tokenizer, start=cursor, holds_out=split.holds_out)
    with _held_out_file(folder / VALIDATION_TEXTS, size) as file:
        for run in runs:
            is_new = writer.append(rows.push(run.tokens_N))
            added, characters = _append(file, run.held_out, characters)
            cursor, size, tokens = run.cursor, size + added, tokens + len(run.tokens_N)
            if is_new:
                os.fsync(file.fileno())
                rest = base64.b64encode(rows.rest_N.astype(dtype).tobytes()).decode()
                writer.commit({"cursor": cursor.state_dict(), "rest": rest, "bytes": size, "characters": characters})
            report(cursor, tokens)
    shards = writer.close()
    validation = _write_validation(folder, tokenizer, length, frame, dtype)
    for side, sequences, texts in (
        ("training", writer.rows, cursor.documents),
        ("validation", validation.rows, cursor.held_out),
    ):
        if not sequences:
            raise ValueError(
                f"{documents.name}: the {texts} {side} documents hold fewer tokens than one sequence of length={length}: give more "
                "text, a smaller length or another validation_share, and an empty folder"
            )
    index = Index(
        kind="tokens",
        length=length,
        num_states=len(tokenizer),
        dtype=dtype.str,
        coder=made_by["tokenizer"],
        facts={"wrap": layout.wrap, "eos_id": token_id(tokenizer.eos_token_id)},
        made_by=made_by,
        counts={
            "documents": cursor.documents,
            "held_out": cursor.held_out,
            "split": cursor.split,
            "replaced": cursor.place.replaced,
            "skipped": cursor.place.skipped,
            "text_bytes": cursor.text_bytes,
            "tokens": sum(shard.rows for shard in shards) * length,
            "dropped_tokens": len(rows.rest_N),
        },
        train=shards,
        validation=validation,
    )
    writer.publish(index)
    return index


def _held_out_file(path: Path, size: int) -> IO[bytes]:
    """The file of held-out documents, cut to what belongs to the state, its end to be written on."""
    file = open(path, "r+b" if size else "wb")  # noqa: SIM115 (the caller closes it)
    file.truncate(size)
    file.seek(size)
    return file


def _append(file: IO[bytes], texts: Iterable[str], characters: int) -> tuple[int, int]:
    """Append held-out texts, as long as there is room for more. Returns the bytes written, and all characters."""
    size = 0
    for text in texts:
        if characters < VALIDATION_CHARACTERS:
            size += file.write(json.dumps({"text": text}).encode() + b"\n")
            characters += len(text)
    file.flush()
    return size, characters


def read_held_out(folder: Path) -> list[str]:
    """The held-out documents that are kept."""
    with open(folder / VALIDATION_TEXTS, "rb") as lines:
        return [json.loads(line)["text"] for line in lines]


def _write_validation(
    folder: Path,
    tokenizer: "transformers.PreTrainedTokenizerFast",
    length: int,
    frame: tuple[int, int] | None,
    dtype: "np.dtype[Any]",
) -> Shard:
    """Tokenise and pack the held-out documents that are kept."""
    blocks: list[Integer[np.ndarray, "n D"]] = list(
        pack(encode_documents(read_held_out(folder), tokenizer), length, frame=frame)
    )
    content = b"".join(block_ND.astype(dtype).tobytes() for block_ND in blocks)
    write_bytes(folder / VALIDATION, content)
    digest = blake2b(content).hexdigest()
    return Shard(name=VALIDATION, rows=sum(map(len, blocks)), size=len(content), blake2b=digest)
