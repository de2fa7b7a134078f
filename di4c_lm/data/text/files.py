"""A corpus in files, alone, in folders, packed or not, here or at an fsspec URL, or on the Hugging Face hub: what is in one file, then
the files one after the other, then the hub's data sets.
"""

import dataclasses
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from di4c_lm.core.retry import RetryPolicy, is_network_failure, with_retries
from di4c_lm.data.reading import ask_hub, is_hidden, local_or_hub, opened
from di4c_lm.data.records.shards import is_shards
from di4c_lm.data.text.documents import Documents, Place, Walk
from di4c_lm.data.text.pairs import RECORDS, check_record

logger = logging.getLogger(__name__)

OFFLINE_WAY = (
    "data=files data.path=<.jsonl, .txt or .parquet files, or a folder of them>, or data.dataset=<folder of parquet "
    "files>"
)
SUFFIXES = (
    *(kind + packing for kind in (".jsonl", ".txt", ".md") for packing in ("", ".gz", ".zst")),
    ".json",
    ".parquet",
)
_NOTES = (
    ".md",
    ".md.gz",
    ".md.zst",
    ".json",
)  # of a folder only where it has nothing else: beside a corpus they describe it
READ_ERRORS = (OSError, EOFError, zlib.error)
_SEPARATOR = "<|endoftext|>"
_ROWS_AT_ONCE = 256
_SKIPPED_AT_ONCE = 1 << 20
_LINE_BYTES = 1 << 28  # a line is held in memory, and 1.4 MB of gzip may say that it has gigabytes


@dataclasses.dataclass
class Tally:
    """What was found, mended or left out while reading."""

    documents: int = 0
    replaced: int = 0
    skipped: int = 0
    skip_bad: bool = False


def documents_in(name: str, start: int, text_key: str, tally: Tally) -> Iterator[tuple[int, str]]:
    """The documents of the file or URL `name`, each with the offset behind it; `start` is such an offset, or 0.

    Counts in `tally` what it replaces and skips, and not the documents. Raises `ValueError` for a record of another form,
    `OSError`, `EOFError` or `zlib.error` for a file that cannot be read on.
    """
    kind = name.lower()
    with opened(name) as file:
        if kind.endswith(".parquet"):
            yield from _parquet(name, file, start, text_key, tally)
        elif kind.endswith(".json"):
            yield from _json(name, file, start, text_key, tally)
        elif ".jsonl" in kind[-len(".jsonl.zst") :]:
            yield from _json_lines(name, _lines(file, start), start, text_key, tally)
        elif text_key in RECORDS:
            raise ValueError(
                f"{name}: records must be in .jsonl, .json or .parquet where data.records={RECORDS[text_key]}"
            )
        else:
            yield from _paragraphs(_lines(file, start), tally)


def _lines(file: Any, start: int) -> Iterator[tuple[int, bytes]]:
    """Lines with the offset behind each."""
    if start and file.seekable():
        file.seek(start)
    else:
        left = start
        while left:
            left -= len(file.read(min(left, _SKIPPED_AT_ONCE))) or left
    offset = start
    while line := file.readline(_LINE_BYTES):
        if len(line) == _LINE_BYTES:
            raise OSError(f"a line of {_LINE_BYTES:,} bytes or more")
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


def _json(name: str, file: Any, start: int, text_key: str, tally: Tally) -> Iterator[tuple[int, str]]:
    """A list of records, or of texts; the offset counts them."""
    content = file.read(_LINE_BYTES)
    if len(content) == _LINE_BYTES:
        raise OSError(f"a .json file of {_LINE_BYTES:,} bytes or more; .jsonl has no such bound")
    try:
        records = json.loads(_decode(content, tally).lstrip("\ufeff"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise OSError(f"not valid JSON ({error})") from error
    if not isinstance(records, list):
        raise ValueError(f"{name}: expected a list of records in a .json file, found {type(records).__name__}")
    for number, record in enumerate(records[start:], start=start + 1):
        try:
            is_text = isinstance(record, str) and text_key not in RECORDS
            yield number, _without_surrogates(record if is_text else _text_of(record, text_key), tally)
        except ValueError as error:
            if not tally.skip_bad:
                said = "data.skip_bad=true skips and counts such records"
                raise ValueError(f"{name}: record {number}: {error} ({said})") from error
            tally.skipped += 1


def _record_text(line: str, text_key: str) -> str:
    """Raises ValueError that says what is wrong with the record."""
    try:
        record: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        utf16 = "; the file looks like UTF-16: save it as UTF-8" if "\x00" in line else ""
        raise ValueError(f"not valid JSON ({error}){utf16}") from error
    return _text_of(record, text_key)


def _text_of(record: Any, text_key: str) -> str:
    """The text under a key, or under keys within keys joined by dots; of `RECORDS` the record. Raises `ValueError` where there is none."""
    if text_key in RECORDS:
        return check_record(record, RECORDS[text_key])
    if isinstance(record, dict) and text_key not in record and "." in text_key:
        first, _, rest = text_key.partition(".")
        return _text_of(record.get(first), rest)
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
        if text_key in RECORDS:
            yield from _parquet_records(name, table, start, text_key, tally)
            return
        if table.schema_arrow.names.count(text_key) != 1:
            raise ValueError(
                f"{name}: expected one column {text_key!r} (data.text_key), found {sorted(table.schema_arrow.names)}"
            )
        kind: Any = table.schema_arrow.field(text_key).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise ValueError(f"{name}: the column {text_key!r} does not hold texts but {kind}")
        as_bytes = pyarrow.large_binary() if types.is_large_string(kind) else pyarrow.binary()
        ends = np.cumsum([table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)])
        groups = np.flatnonzero(ends > start)
        row = int(ends[groups[0] - 1]) if len(groups) and groups[0] else 0
        for batch in table.iter_batches(
            _ROWS_AT_ONCE, row_groups=groups.tolist(), columns=[text_key], use_threads=False
        ):
            for at, raw in enumerate(batch.column(0).cast(as_bytes).to_pylist(), start=row + 1):
                if at > start and raw is not None:
                    yield at, _decode(raw, tally)
            row += len(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise OSError(f"{error}") from error


def _parquet_records(name: str, table: Any, start: int, text_key: str, tally: Tally) -> Iterator[tuple[int, str]]:
    """Records of several columns, or of one that holds lists."""
    names = [column for column in text_key.split("+") if column]
    if lacking := [column for column in names if column not in table.schema_arrow.names]:
        raise ValueError(f"{name}: expected a column {lacking[0]!r}, found {sorted(table.schema_arrow.names)}")
    row = 0
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=names, use_threads=False):
        for record in batch.to_pylist():
            row += 1
            if row <= start:
                continue
            try:
                yield row, _without_surrogates(_text_of(record, text_key), tally)
            except ValueError as error:
                if not tally.skip_bad:
                    said = "data.skip_bad=true skips and counts such records"
                    raise ValueError(f"{name}: row {row}: {error} ({said})") from error
                tally.skipped += 1


def _has_known_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _is_note(name: str) -> bool:
    """Whether a file beside a corpus describes it, by its lower-case name."""
    return name.endswith(_NOTES) or name.startswith(("readme", "license", "requirements"))


def _expand_local(part: str) -> list[str]:
    path = Path(part).expanduser()
    if path.is_dir():
        if any(path.glob("*.bin")) and (path / "validation.jsonl").exists() and not is_shards(path):
            raise ValueError(f"data.path: {path} holds shards without their index.json, and no text to train on")
        if is_shards(path):
            raise ValueError(f"data.path: {path} holds prepared shards and no text: say data=shards data.path={path}")
        if not os.access(path, os.R_OK | os.X_OK):
            raise ValueError(f"data.path: the folder {path} may not be read")
        broken = next((file for file in path.rglob("*") if _has_known_suffix(file.name) and not file.exists()), None)
        if broken is not None:
            raise ValueError(f"data.path: {broken} is a link to nothing")
        inside = sorted(file for file in path.rglob("*") if file.is_file() and _has_known_suffix(file.name))
        inside = [file for file in inside if not is_hidden(file.relative_to(path))]
        inside = [file for file in inside if not _is_note(file.name.lower())] or inside
        return [str(file) for file in inside]
    if not path.exists():
        raise ValueError(f"data.path: there is no file or folder {path}")
    return [str(path)]


def _expand_url(url: str) -> list[str]:
    from fsspec.core import url_to_fs

    def look() -> list[str]:
        filesystem, path = url_to_fs(url)
        if filesystem.isdir(path):
            inside = sorted(name for name in filesystem.find(path) if _has_known_suffix(name))
            return [filesystem.unstrip_protocol(name) for name in inside]
        if not filesystem.exists(path):
            raise FileNotFoundError(path)
        return [url]

    try:
        return with_retries(look, f"data.path={url}", OFFLINE_WAY)
    except ImportError as error:
        protocol = url.partition("://")[0]
        raise ValueError(f"data.path={url}: {protocol}:// needs a package that is not installed: {error}") from error
    except FileNotFoundError as error:
        raise ValueError(f"data.path: there is no file or folder {url}") from error
    except ValueError as error:
        raise ValueError(f"data.path={url}: {error}") from error


def _expand(paths: str) -> list[str]:
    """Files and URLs named by `paths` (files, folders and URLs joined by commas), folders in the order of their names."""
    found: list[str] = []
    whole = Path(paths).expanduser().exists()  # a name may have a comma itself
    for part in [paths] if whole else filter(None, (part.strip() for part in paths.split(","))):
        inside = _expand_url(part) if "://" in part else _expand_local(part)
        if not inside:
            raise ValueError(f"data.path: the folder {part} holds no file that ends in one of {', '.join(SUFFIXES)}")
        if not all(map(_has_known_suffix, inside)):
            raise ValueError(f"data.path: {part} ends in none of {', '.join(SUFFIXES)}")
        found += inside
    if not found:
        raise ValueError(f"data.path={paths!r} names no file")
    return found


def _read_file(name: str, start: int, text_key: str, tally: Tally) -> Iterator[tuple[int, str]]:
    before = tally.documents
    try:
        for offset, text in documents_in(name, start, text_key, tally):
            if text.strip():
                tally.documents += 1
                yield offset, text
    except READ_ERRORS as error:
        if is_network_failure(error):
            raise
        if not tally.skip_bad:
            read = tally.documents - before
            raise ValueError(
                f"{name}: damaged or unreadable after {read} documents: {type(error).__name__}: {error}"
            ) from error
        tally.skipped += 1


def _walk_once(
    files: Sequence[str], start: Place, text_key: str, rank: int, world_size: int, *, skip_bad: bool
) -> Walk:
    """As `Documents.walk`. Files are dealt out where they can be evenly, and else the single documents."""
    by_file = len(files) % world_size == 0
    tally = Tally(start.documents, start.replaced, start.skipped, skip_bad)
    for number in range(start.file, len(files)):
        if by_file and number % world_size != rank:
            continue
        offset = start.offset if number == start.file else 0
        for behind, text in _read_file(files[number], offset, text_key, tally):
            if by_file or (tally.documents - 1) % world_size == rank:
                yield Place(number, behind, tally.documents, tally.replaced, tally.skipped), text
    yield Place(len(files), 0, tally.documents, tally.replaced, tally.skipped), None


def _identity(name: str) -> str:
    """A file's name and size, wherever its folder is; of a URL, itself."""
    return name if "://" in name else f"{Path(name).name} {Path(name).stat().st_size}"


def files_as_documents(name: str, files: Sequence[str], *, text_key: str, skip_bad: bool) -> Documents:
    """`files`, of the kinds of `SUFFIXES`, as the corpus `name`. Raises as `file_documents` does while reading."""
    reported: list[Place] = []

    def report(end: Place) -> None:
        if end.replaced and not reported:
            logger.warning("%s: invalid UTF-8 was replaced by U+FFFD in %d places", name, end.replaced)
        if end.skipped and not reported:
            logger.warning("%s: %d records or files that could not be read were skipped", name, end.skipped)
        reported.append(end)

    def walk(start: Place, rank: int, world_size: int) -> Walk:
        policy, reached = RetryPolicy(name, OFFLINE_WAY), start
        while True:
            try:
                for place, text in _walk_once(files, reached, text_key, rank, world_size, skip_bad=skip_bad):
                    policy.succeeded()
                    reached = place
                    if text is None:
                        report(place)
                        if not place.documents:
                            bad = f", {place.skipped} bad records or files" if place.skipped else ""
                            raise ValueError(f"{name}: the corpus is empty: {len(files)} files, 0 documents{bad}")
                    yield place, text
                return
            except Exception as error:
                policy.after(error)

    return Documents(
        name,
        lambda: (text for _, text in walk(Place(), 0, 1) if text is not None),
        walk,
        hashlib.sha256("\n".join(map(_identity, files)).encode()).hexdigest()[:16],
    )


def file_documents(paths: str, *, text_key: str = "text", skip_bad: bool = False) -> Documents:
    """The documents of files, read lazily and in order; nothing is read before the first document is asked for.

    `paths` joins files, folders and fsspec URLs (`s3://`, `hf://`, `https://`, ...) by commas; a folder stands for all its files,
    however deep, whose names end in one of `SUFFIXES`. In `.jsonl` each line is an object with the document under `text_key`, in
    `.parquet` a column has that name. In `.txt` documents are separated by blank lines or by lines that hold only
    `<|endoftext|>`. Empty documents are passed over. Invalid UTF-8 is replaced, counted and logged. Where a network fails, also
    midway, reading resumes after a pause with the document after the last one given.

    Raises:
        ValueError: a path that is absent or of another kind (at once); while reading, no document at all, a damaged
        file, or, named with file and line, a record that is not as above. With `skip_bad` the last two are counted, logged and
            skipped.
        ConnectionError: a server did not answer; the message names the offline way.
    """
    return files_as_documents(paths, _expand(paths), text_key=text_key, skip_bad=skip_bad)


def _rows(rows: Any, dataset: str, text_key: str) -> Iterator[list[str]]:
    for batch in rows.iter(batch_size=_ROWS_AT_ONCE):
        if text_key not in batch:
            raise ValueError(f"data.dataset={dataset}: no column {text_key!r} (data.text_key), found {sorted(batch)}")
        yield [text for text in batch[text_key] if text is not None]


def hub_documents(dataset: str, *, split: str = "train", text_key: str = "text") -> Documents:
    """The documents of a hub data set, in its order, downloaded whole; `dataset` may be a local folder of parquet (or JSON) files.

    No code of the data set's is run. Empty documents are passed over.

    Raises (while reading):
        ValueError: an unknown data set, split or column, a damaged file, or no document at all.
        ConnectionError: the hub did not answer; the message names the offline way.
    """
    name = f"data.dataset={dataset}"

    def load(datasets: Any) -> Any:
        return datasets.load_dataset(local_or_hub(dataset), split=split)

    def read() -> Iterator[str]:
        documents = 0
        for texts in _rows(ask_hub(load, f"{name}, data.split={split}", OFFLINE_WAY), dataset, text_key):
            for text in filter(str.strip, texts):
                documents += 1
                yield text
        if not documents:
            raise ValueError(f"{name}, data.split={split}: the corpus is empty, 0 documents were found")

    return Documents(name, read, identity=f"{dataset}/{split}")


def hub_stream(dataset: str, *, split: str = "train", text_key: str = "text", skip_bad: bool = False) -> Documents:
    """As `hub_documents`, but only what is read is downloaded, as it is read: the data files of the split, in their order.

    Raises (the first two at once):
        ValueError: an unknown data set or split, or data files of another kind than `SUFFIXES`; while reading, as
            `file_documents`.
        ConnectionError: the hub did not answer; the message names the offline way.
    """

    def look(datasets: Any) -> Any:
        return datasets.load_dataset_builder(local_or_hub(dataset)).config.data_files

    by_split = ask_hub(look, f"data.dataset={dataset}, data.split={split}", OFFLINE_WAY) or {}
    if split not in by_split:
        raise ValueError(f"data.dataset={dataset}, data.split={split}: cannot be loaded: found {sorted(by_split)}")
    files = [str(file) for file in by_split[split]]
    other = next((file for file in files if not file.lower().endswith(SUFFIXES)), None)
    if other is not None or not files:
        raise ValueError(
            f"data.dataset={dataset}, data.split={split}: {other or 'no file'} cannot be streamed: allowed are "
            f"{', '.join(SUFFIXES)}; data.streaming=false reads all kinds that `datasets` knows"
        )
    return files_as_documents(f"data.dataset={dataset}", files, text_key=text_key, skip_bad=skip_bad)
