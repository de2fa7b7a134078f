"""A hub data set, from local parquet files and from a hub that fails."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import datasets.config
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from di4c_lm.data import hub, openwebtext
from di4c_lm.data.openwebtext import hub_documents

TEXTS = [f"document number {n}" for n in range(700)]
MODES = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of parquet; the second also holds a null and an empty text."""
    path = tmp_path / "corpus"
    path.mkdir()
    parts = (TEXTS[:300], [*TEXTS[300:500], None, " \n", *TEXTS[500:]])
    for number, texts in enumerate(parts):
        table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string()), "id": list(range(len(texts)))})
        pyarrow.parquet.write_table(table, path / f"train-{number:05d}-of-00002.parquet")
    return path


@MODES
def test_all_documents_in_order_and_again(folder: Path, streaming: bool) -> None:  # noqa: FBT001
    documents = hub_documents(str(folder), streaming=streaming)
    assert list(documents.read()) == TEXTS
    assert list(documents.read()) == TEXTS


@MODES
@pytest.mark.parametrize(
    "wrong, said", [({"text_key": "body"}, r"'body'.*\['id', 'text'\]"), ({"split": "test"}, "data.split=test")]
)
def test_an_absent_column_or_split_is_named(folder: Path, streaming: bool, wrong: dict[str, str], said: str) -> None:  # noqa: FBT001
    with pytest.raises(ValueError, match=said):
        list(hub_documents(str(folder), streaming=streaming, **wrong).read())


@MODES
def test_a_truncated_shard_is_an_error(folder: Path, streaming: bool) -> None:  # noqa: FBT001
    shard = next(iter(sorted(folder.iterdir())))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"data.dataset={folder}"):
        list(hub_documents(str(folder), streaming=streaming).read())


@MODES
def test_an_empty_corpus_is_named(tmp_path: Path, streaming: bool) -> None:  # noqa: FBT001
    pyarrow.parquet.write_table(pyarrow.table({"text": [" ", ""]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="empty, 0 documents"):
        list(hub_documents(str(tmp_path), streaming=streaming).read())


@MODES
def test_an_empty_folder_is_named(tmp_path: Path, streaming: bool) -> None:  # noqa: FBT001
    with pytest.raises(ValueError, match=f"data.dataset={tmp_path}"):
        list(hub_documents(str(tmp_path), streaming=streaming).read())


@MODES
def test_without_network_the_offline_way_is_named(streaming: bool) -> None:  # noqa: FBT001
    with pytest.raises(ConnectionError, match="data.dataset=somebody/corpus.*data=files data.path="):
        next(hub_documents("somebody/corpus", streaming=streaming).read())


class Flaky:
    """A streamed data set whose connection breaks after `good` batches, each time it is opened."""

    def __init__(self, texts: list[str], good: int) -> None:
        self.texts = texts
        self.good = good

    def skip(self, count: int) -> "Flaky":
        return Flaky(self.texts[count:], self.good)

    def iter(self, batch_size: int) -> Iterator[dict[str, list[str]]]:
        for number, start in enumerate(range(0, len(self.texts), batch_size)):
            if number == self.good:
                raise OSError("broken pipe") from ConnectionResetError()
            yield {"text": self.texts[start : start + batch_size]}


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(openwebtext, "_ROWS_AT_ONCE", 10)
    monkeypatch.setattr(hub, "DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return monkeypatch


def test_a_connection_that_breaks_midway_loses_and_repeats_nothing(flaky: pytest.MonkeyPatch) -> None:
    flaky.setattr(datasets, "load_dataset", lambda *_, **__: Flaky(TEXTS, 7))
    assert list(hub_documents("somebody/corpus", streaming=True).read()) == TEXTS


def test_a_connection_that_stays_broken_is_given_up(flaky: pytest.MonkeyPatch) -> None:
    flaky.setattr(datasets, "load_dataset", lambda *_, **__: Flaky(TEXTS, 0))
    with pytest.raises(ConnectionError, match="after 3 attempts.*data=files"):
        list(hub_documents("somebody/corpus", streaming=True).read())
