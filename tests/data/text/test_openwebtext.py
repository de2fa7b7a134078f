"""A hub data set, from local parquet files and from a hub that fails."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from di4c_lm.core import retry as hub
from di4c_lm.data.text import files
from di4c_lm.data.text.documents import Documents
from di4c_lm.data.text.openwebtext import hub_documents, hub_stream

TEXTS = [f"document number {n}" for n in range(700)]
MODES = pytest.mark.parametrize("open_hub", [hub_documents, hub_stream])


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
def test_all_documents_in_order_and_again(folder: Path, open_hub: Callable[..., Documents]) -> None:
    documents = open_hub(str(folder))
    assert list(documents.read()) == TEXTS
    assert list(documents.read()) == TEXTS


@MODES
@pytest.mark.parametrize(
    "wrong, said", [({"text_key": "body"}, r"'body'.*\['id', 'text'\]"), ({"split": "test"}, "data.split=test")]
)
def test_an_absent_column_or_split_is_named(
    folder: Path, open_hub: Callable[..., Documents], wrong: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        list(open_hub(str(folder), **wrong).read())


@MODES
def test_a_truncated_shard_is_an_error(folder: Path, open_hub: Callable[..., Documents]) -> None:
    shard = next(iter(sorted(folder.iterdir())))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=str(folder)):
        list(open_hub(str(folder)).read())


@MODES
def test_an_empty_corpus_is_named(tmp_path: Path, open_hub: Callable[..., Documents]) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [" ", ""]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="empty.* 0 documents"):
        list(open_hub(str(tmp_path)).read())


@MODES
def test_an_empty_folder_is_named(tmp_path: Path, open_hub: Callable[..., Documents]) -> None:
    with pytest.raises(ValueError, match=f"data.dataset={tmp_path}"):
        list(open_hub(str(tmp_path)).read())


@MODES
def test_without_network_the_offline_way_is_named(open_hub: Callable[..., Documents]) -> None:
    with pytest.raises(ConnectionError, match="data.dataset=somebody/corpus.*data=files data.path="):
        next(open_hub("somebody/corpus").read())


class Flaky:
    """Documents of a file whose connection breaks after `good` of them, each time it is opened."""

    def __init__(self, good: int) -> None:
        self.good = good
        self.opened = 0

    def __call__(self, name: str, start: int, *_: Any) -> Iterator[tuple[int, str]]:
        self.opened += 1
        for number in range(start, len(TEXTS)):
            if number == start + self.good:
                raise OSError("broken pipe") from ConnectionResetError()
            yield number + 1, TEXTS[number]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[int], Flaky]:
    monkeypatch.setattr(hub, "DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (folder / "train-00001-of-00002.parquet").unlink()

    def breaks_after(good: int) -> Flaky:
        flaky = Flaky(good)
        monkeypatch.setattr(files, "documents_in", flaky)
        return flaky

    return breaks_after


def test_a_connection_that_breaks_midway_loses_and_repeats_nothing(flaky: Callable[[int], Flaky], folder: Path) -> None:
    broken = flaky(100)
    assert list(hub_stream(str(folder)).read()) == TEXTS
    assert broken.opened == 7


def test_a_connection_that_stays_broken_is_given_up(flaky: Callable[[int], Flaky], folder: Path) -> None:
    flaky(0)
    with pytest.raises(ConnectionError, match="after 3 attempts.*data=files"):
        list(hub_stream(str(folder)).read())


def test_a_stream_of_other_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\nhere\n")
    with pytest.raises(ValueError, match=r"train.csv cannot be streamed: allowed are .jsonl.*data.streaming=false"):
        hub_stream(str(tmp_path))


def test_a_stream_goes_on_from_any_place(folder: Path) -> None:
    documents = hub_stream(str(folder))
    walked = list(documents.walk())
    for at in (0, 1, 298, 299, 300, 498, 699):
        place, _ = walked[at]
        assert [text for _, text in documents.walk(place)] == [*TEXTS[at + 1 :], None]
