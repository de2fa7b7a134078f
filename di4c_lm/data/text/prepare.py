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

from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.data.records.shards import FILLING, Index, row_dtype
from di4c_lm.data.records.writer import LOCK, STATE, write_shard, writing
from di4c_lm.data.text.documents import VALIDATION_CHARACTERS, Documents, Split
from di4c_lm.data.text.packing import Cursor, Rows, Run, encode_documents, encode_runs, frame_of, pack, token_id
from di4c_lm.data.text.pairs import Filling, Pairs, Records, pair_runs
from di4c_lm.data.text.tokenizers import save_tokenizer

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

TOKENIZER, VALIDATION, VALIDATION_TEXTS = "tokenizer", "validation.bin", "validation.jsonl"
TEACHER = "teacher"  # among an index's facts, of shards of a teacher's own samples: the fingerprint of its weights
Report = Callable[[Cursor, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How the tokens are laid out. `shard_tokens`: about so many a file."""

    length: int
    wrap: bool
    shard_tokens: int
    validation_share: float
    records: Records = "text"
    filling: Filling = Filling()

    def said(self) -> dict[str, Any]:
        """What a folder keeps of it; of plain text as before there were other records, and ways to fill rows by them."""
        plain = {**dataclasses.asdict(self), FILLING: self.filling.said()}
        given = {"records": "text", FILLING: Filling().said()}
        return {name: value for name, value in plain.items() if name not in given or given[name] != value}


def prepare(
    folder: Path,
    documents: Documents,
    tokenizer: "transformers.PreTrainedTokenizerFast",
    layout: Layout,
    source: dict[str, Any],
    report: Report = lambda cursor, tokens: None,
    *,
    skip_bad: bool = False,
) -> Index:
    """Make `folder` a folder of shards, or resume it; where it is one already, of the same corpus and settings, only say what it holds.

    Args:
        source: what is read, for the index and for the check on resuming.
        skip_bad: skip records with prompts that make no sequence.
        report: is given where this call begins, and after each run of documents the tokens made since.

    Raises:
        ValueError: the folder holds other files or other shards; the corpus is empty, damaged or too small for one sequence on either side.
        OSError: writing fails (a full disk). What was finished stays, and the next call resumes behind it.
    """
    made_by = {
        "source": {**source, "identity": documents.identity},
        "layout": layout.said(),
        "tokenizer": fingerprint(tokenizer),
    }
    index = Index(
        kind="tokens",
        length=layout.length,
        num_states=len(tokenizer),
        dtype=row_dtype(max(len(tokenizer), 0 if layout.records == "text" else layout.length + 1)),
        coder=made_by["tokenizer"],
        facts={
            "wrap": layout.wrap,
            "eos_id": token_id(tokenizer.eos_token_id),
            **({} if layout.records == "text" else {"records": layout.records}),
            **({FILLING: layout.filling.said()} if layout.filling.has_parts else {}),
        },
        made_by=made_by,
    )
    with writing(folder, index, max(1, layout.shard_tokens // layout.length)) as writer:
        if writer.finished is not None:
            logger.info("%s is prepared already", folder)
            return writer.finished
        place = writer.place or {"cursor": Cursor().state_dict(), "rest": "", "bytes": 0, "characters": 0}
        if writer.place is None:
            _refuse_other_files(folder)
        else:
            logger.info("resuming behind %d shards and %d documents", len(writer.shards), place["cursor"]["documents"])
        save_tokenizer(tokenizer, folder / TOKENIZER)
        frame = frame_of(tokenizer, wrap=layout.wrap)
        rows = Rows(layout.length, frame, np.frombuffer(base64.b64decode(place["rest"]), index.dtype))
        cursor, tokens, size, characters = Cursor.from_state(place["cursor"]), 0, place["bytes"], place["characters"]
        report(cursor, tokens)
        split = Split.by_share(layout.validation_share)
        how: dict[str, Any] = {"records": layout.records, "filling": layout.filling}
        pairs = Pairs(tokenizer=tokenizer, length=layout.length, skip_bad=skip_bad, **how)
        walk = documents.walk(cursor.place)
        if layout.records == "text":
            runs = encode_runs(walk, tokenizer, start=cursor, holds_out=split.holds_out)
            blocks: Iterable[tuple[Any, Run]] = ((rows.push(run.tokens_N), run) for run in runs)
        else:
            blocks = pair_runs(walk, pairs, start=cursor, holds_out=split.holds_out)
        with _held_out_file(folder / VALIDATION_TEXTS, size) as file:
            for block, run in blocks:
                is_new = writer.append(block)
                added, characters = _append(file, run.held_out, characters)
                cursor, size, tokens = run.cursor, size + added, tokens + len(run.tokens_N)
                if is_new:
                    os.fsync(file.fileno())
                    rest = base64.b64encode(rows.rest_N.astype(index.dtype).tobytes()).decode()
                    place = {"cursor": cursor.state_dict(), "rest": rest, "bytes": size, "characters": characters}
                    writer.commit(place)
                report(cursor, tokens)
        if layout.records == "text":
            held_out_ND = pack(encode_documents(read_held_out(folder), tokenizer), layout.length, frame=frame)
        else:
            held_out_NV = pairs.one_each(read_held_out(folder))
            held_out_ND = layout.filling.held_out(held_out_NV[:, :-1], held_out_NV[:, -1])
        pairs.warn(documents.name)
        for side, sequences, texts in (
            ("training", writer.rows, cursor.documents),
            ("validation", len(held_out_ND), cursor.held_out),
        ):
            if not sequences:
                raise ValueError(
                    f"{documents.name}: the {texts} {side} documents hold fewer tokens than one sequence of length={layout.length}: give "
                    "more text, a smaller length or another validation_share, and an empty folder"
                )
        counts = {
            "documents": cursor.documents,
            "held_out": cursor.held_out,
            "split": cursor.split,
            "replaced": cursor.place.replaced,
            "skipped": cursor.place.skipped + pairs.skipped,
            "text_bytes": cursor.text_bytes,
            "tokens": writer.rows * layout.length,
            "dropped_tokens": len(rows.rest_N),
        }
        return writer.close(counts, write_shard(folder, VALIDATION, held_out_ND.astype(index.dtype)))


def _refuse_other_files(folder: Path) -> None:
    ours = (TOKENIZER, VALIDATION, VALIDATION_TEXTS, LOCK, STATE)
    other = [path.name for path in folder.iterdir() if path.name not in ours and not path.name.startswith("train_")]
    if other:
        raise ValueError(f"{folder} holds {other[0]}, which is no part of shards: choose an empty or absent folder")


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


def write_held_out(folder: Path, texts: Iterable[str]) -> None:
    """Keep these as the held-out documents of shards."""
    with open(folder / VALIDATION_TEXTS, "wb") as file:
        _append(file, texts, 0)


def read_held_out(folder: Path) -> list[str]:
    """The held-out documents that are kept."""
    with open(folder / VALIDATION_TEXTS, "rb") as lines:
        return [json.loads(line)["text"] for line in lines]
