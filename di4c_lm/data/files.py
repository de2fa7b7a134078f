"""A corpus in local files: JSON lines or plain text, alone, in folders, compressed or not."""

import contextlib
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from di4c_lm.data.documents import Documents

logger = logging.getLogger(__name__)

SUFFIXES = tuple(kind + packing for kind in (".jsonl", ".txt") for packing in ("", ".gz", ".zst"))
_READ_ERRORS = (OSError, EOFError, zlib.error)
_SEPARATOR = "<|endoftext|>"


class _Tally:
    """What had to be mended or left out while reading, logged once, after the first whole pass."""

    def __init__(self, name: str, *, skip_bad: bool) -> None:
        self.name = name
        self.skip_bad = skip_bad
        self.reported = False
        self.start()

    def start(self) -> None:
        self.documents = self.replaced = self.skipped = 0

    def report(self) -> None:
        if self.replaced and not self.reported:
            logger.warning("%s: invalid UTF-8 was replaced by U+FFFD in %d places", self.name, self.replaced)
        if self.skipped and not self.reported:
            logger.warning("%s: %d records or files that could not be read were skipped", self.name, self.skipped)
        self.reported = True


def _has_known_suffix(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _expand(paths: str) -> list[Path]:
    """Files named by `paths` (files and folders joined by commas), folders in the order of their names."""
    found: list[Path] = []
    for part in filter(None, (part.strip() for part in paths.split(","))):
        path = Path(part).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file() and _has_known_suffix(file))
            if not inside:
                raise ValueError(
                    f"data.path: the folder {path} holds no file that ends in one of {', '.join(SUFFIXES)}"
                )
            found += inside
        elif not path.exists():
            raise ValueError(f"data.path: there is no file or folder {path}")
        elif not _has_known_suffix(path):
            raise ValueError(f"data.path: {path} ends in none of {', '.join(SUFFIXES)}")
        else:
            found.append(path)
    if not found:
        raise ValueError(f"data.path={paths!r} names no file")
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Iterable[bytes]]:
    """The lines of a file, unpacked."""
    if path.name.lower().endswith(".gz"):
        with gzip.open(path, "rb") as file:
            yield file
    elif path.name.lower().endswith(".zst"):
        import pyarrow

        with pyarrow.input_stream(str(path), compression="zstd") as stream, io.BufferedReader(stream) as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


def _decode(line: bytes, tally: _Tally) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        text = line.decode("utf-8", "replace")
        tally.replaced += text.count("\ufffd")
        return text


def _without_surrogates(text: str, tally: _Tally) -> str:
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


def _json_lines(path: Path, lines: Iterable[bytes], text_key: str, tally: _Tally) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        text = _decode(line, tally).lstrip("\ufeff").strip()
        if not text:
            continue
        try:
            yield _without_surrogates(_record_text(text, text_key), tally)
        except ValueError as error:
            if not tally.skip_bad:
                raise ValueError(
                    f"{path}:{number}: {error} (data.skip_bad=true skips and counts such records)"
                ) from error
            tally.skipped += 1


def _paragraphs(lines: Iterable[bytes], tally: _Tally) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        text = _decode(line, tally).lstrip("\ufeff").rstrip("\r\n")
        if text.strip() and text.strip() != _SEPARATOR:
            paragraph.append(text)
        else:
            yield "\n".join(paragraph)
            paragraph = []
    yield "\n".join(paragraph)


def _read_file(path: Path, text_key: str, tally: _Tally) -> Iterator[str]:
    before = tally.documents
    try:
        with _opened(path) as lines:
            is_json = ".jsonl" in path.suffixes[-2:] or path.suffix.lower() == ".jsonl"
            texts = _json_lines(path, lines, text_key, tally) if is_json else _paragraphs(lines, tally)
            for text in texts:
                if text.strip():
                    tally.documents += 1
                    yield text
    except _READ_ERRORS as error:
        if not tally.skip_bad:
            read = tally.documents - before
            raise ValueError(
                f"{path}: damaged or unreadable after {read} documents: {type(error).__name__}: {error}"
            ) from error
        tally.skipped += 1


def file_documents(paths: str, *, text_key: str = "text", skip_bad: bool = False) -> Documents:
    """The documents of local files, read lazily and in order; nothing is read before the first document is asked for.

    `paths` joins files and folders by commas; a folder stands for all its files, however deep, whose names end in one
    of `SUFFIXES`. In `.jsonl` each line is an object with the document under `text_key`. In `.txt` documents are
    separated by blank lines or by lines that hold only `<|endoftext|>`. Empty documents are passed over. Invalid
    UTF-8 is replaced, counted and logged.

    Raises:
        ValueError: a path that is absent or of another kind (at once); while reading, no document at all, a damaged
        file, or, named
            with file and line, a record that is not as above. With `skip_bad` the last two are counted, logged and
            skipped.
    """
    files = _expand(paths)
    tally = _Tally(paths, skip_bad=skip_bad)

    def read() -> Iterator[str]:
        tally.start()
        for path in files:
            yield from _read_file(path, text_key, tally)
        tally.report()
        if not tally.documents:
            bad = f", {tally.skipped} bad records or files" if tally.skipped else ""
            raise ValueError(f"data.path={paths}: the corpus is empty: {len(files)} files, 0 documents{bad}")

    return Documents(paths, read)
