"""A corpus on the Hugging Face hub, or a folder of its parquet files, through `datasets`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from di4c_lm.core.retry import with_patience
from di4c_lm.data.text.documents import Documents
from di4c_lm.data.text.files import OFFLINE_WAY, files_as_documents
from di4c_lm.data.text.formats import SUFFIXES

_ROWS_AT_ONCE = 256


def _local_or_hub(dataset: str) -> str:
    local = Path(dataset).expanduser()
    return str(local) if local.is_dir() else dataset


def _asked(ask: Callable[[], Any], dataset: str, split: str) -> Any:
    """What `datasets` answers. Raises as `hub_documents`."""
    from datasets.exceptions import DatasetsError

    what = f"data.dataset={dataset}"
    try:
        return with_patience(ask, what, OFFLINE_WAY)
    except (FileNotFoundError, ValueError, DatasetsError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"{what}, data.split={split}: cannot be loaded: {reason} (offline: {OFFLINE_WAY})") from error


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

    def load() -> Any:
        import datasets

        return datasets.load_dataset(_local_or_hub(dataset), split=split)

    def read() -> Iterator[str]:
        documents = 0
        for texts in _rows(_asked(load, dataset, split), dataset, text_key):
            for text in filter(str.strip, texts):
                documents += 1
                yield text
        if not documents:
            raise ValueError(f"{name}, data.split={split}: the corpus is empty, 0 documents were found")

    return Documents(name, read, identity=f"{dataset}/{split}")


def hub_stream(dataset: str, *, split: str = "train", text_key: str = "text", skip_bad: bool = False) -> Documents:
    """As `hub_documents`, but only what is read is downloaded, as it is read: the data files of the split, in their order.

    Raises (the first two at once):
        ValueError: an unknown data set or split, or data files of another kind than `formats.SUFFIXES`; while reading, as
            `file_documents`.
        ConnectionError: the hub did not answer; the message names the offline way.
    """

    def look() -> Any:
        import datasets

        return datasets.load_dataset_builder(_local_or_hub(dataset)).config.data_files

    by_split = _asked(look, dataset, split) or {}
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
