"""What readers of text and of images share: files here and at fsspec URLs, packed or not, and data sets of the hub."""

import contextlib
import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from di4c_lm.core.retry import look_for_hub, with_retries


@contextlib.contextmanager
def opened(name: str) -> Iterator[Any]:
    """The bytes of a file or fsspec URL, unpacked where the name ends in `.gz` or `.zst`, as a binary file."""
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


def is_hidden(path: Path) -> bool:
    """Whether a file, or a folder on the way to it, is one that systems leave beside the user's (`.name`, `__MACOSX`)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def ask_hub(ask: Callable[[Any], Any], what: str, offline_way: str) -> Any:
    """What `ask(datasets)` answers. No code of a data set's is run.

    Raises `ValueError` that names `what` for an unknown data set or split, `ConnectionError` where the hub does not answer; both with the
    offline way.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        return with_retries(lambda: ask(datasets), what, offline_way)
    except (FileNotFoundError, ValueError, DatasetsError, RuntimeError) as error:  # the last of a data set with code
        reason = error.__cause__ or error
        raise ValueError(f"{what}: cannot be loaded: {reason} (offline: {offline_way})") from error


def local_or_hub(dataset: str) -> str:
    """A folder that is here, by its path; else the name of a data set."""
    local = Path(dataset).expanduser()
    if not local.is_dir():
        look_for_hub()
    return str(local) if local.is_dir() else dataset
