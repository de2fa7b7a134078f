"""The documents in one file: JSON lines, plain text or parquet, packed or not, from any offset on."""

import contextlib
import dataclasses
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

SUFFIXES = (*(kind + packing for kind in (".jsonl", ".txt") for packing in ("", ".gz", ".zst")), ".parquet")
READ_ERRORS = (OSError, EOFError, zlib.error)
_SEPARATOR = "<|endoftext|>"
_ROWS_AT_ONCE = 256
_SKIPPED_AT_ONCE = 1 << 20


@dataclasses.dataclass
class Tally:
    """What was found, mended or left out while reading."""

    documents: int = 0
    replaced: int = 0
    skipped: int = 0
    skip_bad: bool = False


def documents_in(name: str, start: int, text_key: str, tally: Tally) -> Iterator[tuple[int, str]]:
    """The documents of the file or URL `name`, each with the offset behind it; `start` is such an offset, or 0.

    Counts in `tally` what it replaces and skips, and not the documents. Raises `ValueError` for a record that is not as asked,
    `OSError`, `EOFError` or `zlib.error` for a file that cannot be read on.
    """
    kind = name.lower()
    with _opened(name) as file:
        if kind.endswith(".parquet"):
            yield from _parquet(name, file, start, text_key, tally)
        elif ".jsonl" in kind[-len(".jsonl.zst") :]:
            yield from _json_lines(name, _lines(file, start), start, text_key, tally)
        else:
            yield from _paragraphs(_lines(file, start), tally)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[Any]:
    """The file's bytes, unpacked, as a binary file."""
    with contextlib.ExitStack() as stack:
        if "://" in name:
            from fsspec.core import url_to_fs

            filesystem, path = url_to_fs(name)
            file = stack.enter_context(filesystem.open(path, "rb"))
        else:
            file = stack.enter_context(open(name, "rb"))
        if name.lower().endswith(".gz"):
            file = stack.enter_context(gzip.GzipFile(fileobj=file))
        elif name.lower().endswith(".zst"):
            import pyarrow

            stream: Any = stack.enter_context(pyarrow.input_stream(file, compression="zstd"))
            file = stack.enter_context(io.BufferedReader(stream))
        yield file


def _lines(file: Any, start: int) -> Iterator[tuple[int, bytes]]:
    """Lines with the offset behind each."""
    if start and file.seekable():
        file.seek(start)
    else:
        left = start
        while left:
            left -= len(file.read(min(left, _SKIPPED_AT_ONCE))) or left
    offset = start
    for line in file:
        offset += len(line)
        yield offset, line


def _decode(raw: bytes, tally: Tally) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "replace")
        tally.replaced += text.count("\ufffd")
        return text


def _without_surrogates(text: str, tally: Tally) -> str:
    """JSON may escape half a UTF-16 pair, which no encoding of the text can hold: replaced like invalid UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    else:
        return text
    tally.replaced += mended.count("\ufffd")
    return mended


def _record_text(line: str, text_key: str) -> str:
    """Raises ValueError that says what is wrong with the record."""
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object was expected, found {type(record).__name__}")
    if text_key not in record:
        raise ValueError(f"no key {text_key!r} (data.text_key), found {sorted(record)}")
    if not isinstance(record[text_key], str):
        raise ValueError(f"the value of {text_key!r} is not a text but {type(record[text_key]).__name__}")
    return record[text_key]


def _json_lines(
    name: str, lines: Iterator[tuple[int, bytes]], start: int, text_key: str, tally: Tally
) -> Iterator[tuple[int, str]]:
    for number, (offset, line) in enumerate(lines, start=1):
        text = _decode(line, tally).lstrip("\ufeff").strip()
        if not text:
            continue
        try:
            yield offset, _without_surrogates(_record_text(text, text_key), tally)
        except ValueError as error:
            if not tally.skip_bad:
                where = f"{name}:{number}" + (f" behind byte {start}" if start else "")
                raise ValueError(f"{where}: {error} (data.skip_bad=true skips and counts such records)") from error
            tally.skipped += 1


def _paragraphs(lines: Iterator[tuple[int, bytes]], tally: Tally) -> Iterator[tuple[int, str]]:
    paragraph: list[str] = []
    offset = 0
    for offset, line in lines:
        text = _decode(line, tally).lstrip("\ufeff").rstrip("\r\n")
        if text.strip() and text.strip() != _SEPARATOR:
            paragraph.append(text)
        elif paragraph:
            yield offset, "\n".join(paragraph)
            paragraph = []
    yield offset, "\n".join(paragraph)


def _parquet(name: str, file: Any, start: int, text_key: str, tally: Tally) -> Iterator[tuple[int, str]]:
    import pyarrow
    from pyarrow import parquet, types

    try:
        table = parquet.ParquetFile(file)
        if text_key not in table.schema_arrow.names:
            raise ValueError(
                f"{name}: no column {text_key!r} (data.text_key), found {sorted(table.schema_arrow.names)}"
            )
        kind: Any = table.schema_arrow.field(text_key).type
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise ValueError(f"{name}: the column {text_key!r} does not hold texts but {kind}")
        as_bytes = pyarrow.large_binary() if types.is_large_string(kind) else pyarrow.binary()
        first = 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            row = first
            if first + rows > start:
                batches = table.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[text_key], use_threads=False)
                for batch in batches:
                    if row + len(batch) > start:
                        texts = batch.column(0).cast(as_bytes).to_pylist()
                        for at, raw in enumerate(texts[max(0, start - row) :], start=max(row, start) + 1):
                            if raw is not None:
                                yield at, _decode(raw, tally)
                    row += len(batch)
            first += rows
    except (pyarrow.ArrowException, OSError) as error:
        raise OSError(f"{error}") from error
