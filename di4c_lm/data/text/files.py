"""A corpus in files: JSON lines, plain text or parquet, alone, in folders, compressed or not, local or at an fsspec URL."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from di4c_lm.core.retry import Patience, is_network_failure, with_patience
from di4c_lm.data.text.documents import Documents, Place, Walk
from di4c_lm.data.text.formats import READ_ERRORS, SUFFIXES, Tally, documents_in

logger = logging.getLogger(__name__)

OFFLINE_WAY = (
    "data=files data.path=<.jsonl, .txt or .parquet files, or a folder of them>, or data.dataset=<folder of parquet "
    "files>"
)


def _has_known_suffix(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _expand_local(part: str) -> list[str]:
    path = Path(part).expanduser()
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and _has_known_suffix(file.name))
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
        return with_patience(look, f"data.path={url}", OFFLINE_WAY)
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
    for part in filter(None, (part.strip() for part in paths.split(","))):
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
        patience, reached = Patience(name, OFFLINE_WAY), start
        while True:
            try:
                for place, text in _walk_once(files, reached, text_key, rank, world_size, skip_bad=skip_bad):
                    patience.succeeded()
                    reached = place
                    if text is None:
                        report(place)
                        if not place.documents:
                            bad = f", {place.skipped} bad records or files" if place.skipped else ""
                            raise ValueError(f"{name}: the corpus is empty: {len(files)} files, 0 documents{bad}")
                    yield place, text
                return
            except Exception as error:
                patience.after(error)

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
    midway, reading goes on after a pause with the document after the last one given.

    Raises:
        ValueError: a path that is absent or of another kind (at once); while reading, no document at all, a damaged
        file, or, named with file and line, a record that is not as above. With `skip_bad` the last two are counted, logged and
            skipped.
        ConnectionError: a server did not answer; the message names the offline way.
    """
    return files_as_documents(paths, _expand(paths), text_key=text_key, skip_bad=skip_bad)
