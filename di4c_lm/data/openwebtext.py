"""A corpus on the Hugging Face hub, or a folder of its parquet files, through `datasets`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from di4c_lm.data.documents import Documents
from di4c_lm.data.hub import Patience, is_network_failure, with_patience

OFFLINE_WAY = (
    "data=files data.path=<.jsonl or .txt files, or a folder of them>, or data.dataset=<folder of parquet files>"
)
_ROWS_AT_ONCE = 256


def _load(dataset: str, split: str, *, streaming: bool) -> Any:
    """The `datasets` object. Raises as `hub_documents`."""
    import datasets
    from datasets.exceptions import DatasetsError

    local = Path(dataset).expanduser()
    path = str(local) if local.is_dir() else dataset
    what = f"data.dataset={dataset}"

    def load() -> Any:
        return datasets.load_dataset(path, split=split, streaming=streaming)

    try:
        return with_patience(load, what, OFFLINE_WAY)
    except (FileNotFoundError, ValueError, DatasetsError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"{what}, data.split={split}: cannot be loaded: {reason} (offline: {OFFLINE_WAY})") from error


def _rows(rows: Any, dataset: str, text_key: str) -> Iterator[list[str]]:
    import pyarrow

    batches = rows.iter(batch_size=_ROWS_AT_ONCE)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"data.dataset={dataset}: a damaged data file: {error}") from error
        if text_key not in batch:
            raise ValueError(f"data.dataset={dataset}: no column {text_key!r} (data.text_key), found {sorted(batch)}")
        yield [text for text in batch[text_key] if text is not None]


def hub_documents(dataset: str, *, split: str = "train", text_key: str = "text", streaming: bool = False) -> Documents:
    """The documents of a hub data set, in its order; `dataset` may also be a local folder of parquet (or JSON) files.

    With `streaming` nothing is downloaded ahead. No code of the data set's is run. Where the network fails, also
    midway, reading goes on after a pause with the document after the last one given. Empty documents are passed over.

    Raises (while reading):
        ValueError: an unknown data set, split or column, a damaged file, or no document at all.
        ConnectionError: the hub did not answer; the message names the offline way.
    """
    name = f"data.dataset={dataset}"

    def read() -> Iterator[str]:
        patience = Patience(name, OFFLINE_WAY)
        given = documents = 0
        while True:
            rows = _load(dataset, split, streaming=streaming)
            try:
                for texts in _rows(rows.skip(given) if given else rows, dataset, text_key):
                    patience.succeeded()
                    given += len(texts)
                    for text in filter(str.strip, texts):
                        documents += 1
                        yield text
                break
            except Exception as error:
                if not is_network_failure(error):
                    raise
                patience.after(error)
        if not documents:
            raise ValueError(f"{name}, data.split={split}: the corpus is empty, 0 documents were found")

    return Documents(name, read)
