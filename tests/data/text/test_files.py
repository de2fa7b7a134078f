"""Local files, whole and damaged."""

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets.config
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from di4c_lm.core import retry as hub
from di4c_lm.data.text import files
from di4c_lm.data.text.documents import Documents
from di4c_lm.data.text.files import file_documents, hub_documents, hub_stream
from tests.data.records.helpers import write_shards

LINES = [{"text": "first"}, {"text": "second\n\nstill second"}, {"text": "third"}]
TEXTS = [record["text"] for record in LINES]


def jsonl(records: Sequence[Mapping[str, Any]]) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def zstd(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(
    "name, pack",
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstd),
        ("A.JSONL", bytes),
        ("x.y.jsonl.gz", gzip.compress),
    ],
)
def test_json_lines_packed_or_not(tmp_path: Path, name: str, pack) -> None:
    documents = file_documents(write(tmp_path / name, pack(jsonl(LINES))))
    assert list(documents.read()) == TEXTS
    assert list(documents.read()) == TEXTS


def test_zstd_in_several_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl.zst", zstd(jsonl(LINES) + b"\n") + zstd(jsonl(LINES)))
    assert list(file_documents(path).read()) == TEXTS * 2


def test_text_documents_are_separated_by_blank_lines_or_end_of_text(tmp_path: Path) -> None:
    content = "\ufefffirst line\r\nstill first\r\n\r\n \t\n\nsecond\n<|endoftext|>\nthird".encode()
    assert list(file_documents(write(tmp_path / "a.txt", content)).read()) == [
        "first line\nstill first",
        "second",
        "third",
    ]


def test_folders_and_lists_of_paths(tmp_path: Path) -> None:
    write(tmp_path / "in/b.txt", b"from b")
    write(tmp_path / "in/a/z.jsonl", jsonl([{"text": "from z"}]))
    write(tmp_path / "in/notes.md", b"not read")
    last = write(tmp_path / "last.txt", b"from last")
    assert list(file_documents(f"{tmp_path / 'in'}, {last}").read()) == ["from z", "from b", "from last"]


def test_a_folder_of_notes_alone_is_a_corpus(tmp_path: Path) -> None:
    write(tmp_path / "in/a.md", b"# one\n\ntwo")
    write(tmp_path / "in/.hidden/b.md", b"three")
    write(tmp_path / "in/__MACOSX/._a.md", b"four")
    assert list(file_documents(str(tmp_path / "in")).read()) == ["# one", "two"]


def test_a_name_may_have_a_comma(tmp_path: Path) -> None:
    assert list(file_documents(write(tmp_path / "a,b.txt", b"here")).read()) == ["here"]


@pytest.mark.parametrize(
    "record, key",
    [({"content": "here"}, "content"), ({"meta": {"body": "here"}}, "meta.body"), ({"a.b": "here"}, "a.b")],
)
def test_another_text_key(tmp_path: Path, record: dict[str, Any], key: str) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([record]))
    assert list(file_documents(path, text_key=key).read()) == ["here"]


def test_a_json_file_holds_a_list_of_records_or_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps([*LINES, "fourth"]).encode())
    documents = file_documents(path)
    assert list(documents.read()) == [*TEXTS, "fourth"]
    places = [place for place, _ in documents.walk()]
    assert [text for _, text in documents.walk(places[1])] == ["third", "fourth", None]
    for content, said in ((b"{}", "expected a list of records"), (b"[", "not valid JSON"), (b"[3]", "record 1: .*int")):
        with pytest.raises(ValueError, match=said):
            list(file_documents(write(tmp_path / "b.json", content)).read())


def test_utf16_is_called_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="looks like UTF-16: save it as UTF-8"):
        list(file_documents(write(tmp_path / "a.jsonl", jsonl(LINES).decode().encode("utf-16"))).read())


def test_parquet_of_a_dictionary_is_read(tmp_path: Path) -> None:
    column = pyarrow.array(TEXTS * 2).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert list(file_documents(str(tmp_path / "a.parquet")).read()) == TEXTS * 2


@pytest.mark.parametrize("paths", ["{}/absent.txt", "{}/table.csv", "{}/folder", ", "])
def test_paths_that_cannot_serve_are_named_before_reading(tmp_path: Path, paths: str) -> None:
    write(tmp_path / "table.csv", b"a,b")
    write(tmp_path / "folder/notes.rst", b"nothing of ours")
    with pytest.raises(ValueError, match="data.path"):
        file_documents(paths.format(tmp_path))


@pytest.mark.parametrize(
    "name, content", [("a.txt", b""), ("a.txt", b"\n \n\n"), ("a.jsonl", b""), ("a.jsonl", b'{"text": " "}')]
)
def test_an_empty_corpus_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=f"{path}.*empty"):
        list(file_documents(path).read())


@pytest.mark.parametrize(
    "line, said",
    [(b'{"text": ', "not valid JSON"), (b"[1]", "list"), (b'{"body": "x"}', r"\['body'\]"), (b'{"text": 3}', "int")],
)
def test_a_bad_record_is_named_or_skipped_and_counted(
    tmp_path: Path, line: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b'\n\n{"text": "also good"}')
    with pytest.raises(ValueError, match=f"{path}:2: .*{said}"):
        list(file_documents(path).read())
    documents = file_documents(path, skip_bad=True)
    assert list(documents.read()) == list(documents.read()) == ["good", "also good"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 1 records or files that could not be read were skipped"
    ]


@pytest.mark.parametrize("name, pack", [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstd)])
def test_a_truncated_file_is_named_or_skipped_and_counted(
    tmp_path: Path, name: str, pack, caplog: pytest.LogCaptureFixture
) -> None:
    records = [{"text": f"document {n} {n**97}"} for n in range(5000)]
    whole = pack(jsonl(records))
    path = write(tmp_path / name, whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=path):
        list(file_documents(path).read())
    texts = list(file_documents(path, skip_bad=True).read())
    assert texts == [record["text"] for record in records[: len(texts)]]
    assert 0 < len(texts) < 5000
    assert "skipped" in caplog.text


def test_a_file_that_is_not_gzip_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt.gz", b"plain")
    with pytest.raises(ValueError, match=f"{path}.*BadGzipFile"):
        list(file_documents(path).read())


def test_invalid_utf8_is_replaced_and_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a\xff\xfeb"}\n{"text": "half a pair: \\ud800."}')
    documents = file_documents(path)
    assert list(documents.read()) == list(documents.read()) == ["a\ufffd\ufffdb", "half a pair: \ufffd."]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: invalid UTF-8 was replaced by U+FFFD in 3 places"
    ]


def parquet(path: Path, texts: list[str | bytes | None], *, row_group_size: int = 100) -> str:
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array([text.encode() if isinstance(text, str) else text for text in texts], pyarrow.binary())
    as_text = column.view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": as_text}), path, row_group_size=row_group_size)
    return str(path)


def test_parquet_with_nulls_empty_rows_and_invalid_utf8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = parquet(tmp_path / "a.parquet", ["first", None, " ", b"a\xffb", "last"], row_group_size=2)
    assert list(file_documents(path).read()) == ["first", "a\ufffdb", "last"]
    assert "in 1 places" in caplog.text


def test_parquet_without_the_column_is_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", ["first"])
    with pytest.raises(ValueError, match=rf"{path}: expected one column 'body' \(data.text_key\), found \['text'\]"):
        list(file_documents(path, text_key="body").read())


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """One file of each kind, 10 documents each."""
    texts = [f"document {n}" for n in range(60)]
    part = [texts[n : n + 10] for n in range(0, 60, 10)]
    lines = [jsonl([{"text": text} for text in some]) + b"\n\n" for some in part]
    write(tmp_path / "in/a.jsonl", lines[0])
    write(tmp_path / "in/b.jsonl.gz", gzip.compress(lines[1]))
    write(tmp_path / "in/c.jsonl.zst", zstd(lines[2]))
    write(tmp_path / "in/d.txt", "\n\n".join(part[3]).encode())
    write(tmp_path / "in/e.txt.gz", gzip.compress("\n<|endoftext|>\n".join(part[4]).encode()))
    parquet(tmp_path / "in/f.parquet", list(part[5]), row_group_size=4)
    return str(tmp_path / "in")


def test_reading_goes_on_from_any_place_in_any_kind_of_file(mixed: str) -> None:
    documents = file_documents(mixed)
    walked = list(documents.walk())
    assert [text for _, text in walked] == [*(f"document {n}" for n in range(60)), None]
    for at in range(0, 60, 3):
        assert list(documents.walk(walked[at][0])) == walked[at + 1 :]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_ranks_share_the_documents_and_go_on_from_any_place(mixed: str, world: int) -> None:
    documents = file_documents(mixed)
    shares = [list(documents.walk(rank=rank, world_size=world)) for rank in range(world)]
    every = [text for share in shares for _, text in share if text is not None]
    assert sorted(every) == sorted(documents.read())
    for rank, share in enumerate(shares):
        for at in range(0, len(share) - 1, 5):
            assert list(documents.walk(share[at][0], rank=rank, world_size=world)) == share[at + 1 :]


def test_files_at_urls_alone_and_in_folders() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/a.jsonl": jsonl(LINES), "/bucket/in/b.txt.gz": gzip.compress(b"from b")})
    assert list(file_documents("memory://bucket/a.jsonl").read()) == TEXTS
    assert list(file_documents("memory://bucket").read()) == [*TEXTS, "from b"]
    with pytest.raises(ValueError, match="there is no file or folder memory://bucket/absent.txt"):
        file_documents("memory://bucket/absent.txt")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ValueError, match=r"data.path=gone://a.jsonl: .*gone"):
        file_documents("gone://a.jsonl")


def test_a_folder_of_shards_is_no_text(tmp_path: Path) -> None:
    """Its held-out documents lie in it as .jsonl: they must not be trained on."""
    write_shards(tmp_path, [np.arange(12).reshape(4, 3)])
    assert (tmp_path / "validation.jsonl").is_file()
    with pytest.raises(ValueError, match=f"{tmp_path} holds prepared shards and no text: say data=shards"):
        file_documents(str(tmp_path))


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="b.txt is a link to nothing"):
        file_documents(str(tmp_path))


def test_a_line_without_end_is_not_taken_into_memory(tmp_path: Path) -> None:
    """300 MB of spaces are 300 kB of gzip."""
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        for _ in range(300):
            file.write(b" " * 1_000_000)
    with pytest.raises(
        ValueError, match="a.jsonl.gz: damaged or unreadable after 0 documents: .*a line of 268,435,456 bytes"
    ):
        list(file_documents(str(tmp_path / "a.jsonl.gz")).read())


def test_json_nested_without_end_is_a_bad_record(tmp_path: Path) -> None:
    deep = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    (tmp_path / "a.jsonl").write_text(deep + '\n{"text": "fine"}\n')
    with pytest.raises(ValueError, match="a.jsonl:1: not valid JSON"):
        list(file_documents(str(tmp_path / "a.jsonl")).read())
    assert list(file_documents(str(tmp_path / "a.jsonl"), skip_bad=True).read()) == ["fine"]


# Data sets of the hub

HUB_TEXTS = [f"document number {n}" for n in range(700)]
MODES = pytest.mark.parametrize("open_hub", [hub_documents, hub_stream])


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """Two shards of parquet; the second also holds a null and an empty text."""
    path = tmp_path / "corpus"
    path.mkdir()
    parts = (HUB_TEXTS[:300], [*HUB_TEXTS[300:500], None, " \n", *HUB_TEXTS[500:]])
    for number, texts in enumerate(parts):
        table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.string()), "id": list(range(len(texts)))})
        pyarrow.parquet.write_table(table, path / f"train-{number:05d}-of-00002.parquet")
    return path


@MODES
def test_all_documents_in_order_and_again(hub_folder: Path, open_hub: Callable[..., Documents]) -> None:
    documents = open_hub(str(hub_folder))
    assert list(documents.read()) == HUB_TEXTS
    assert list(documents.read()) == HUB_TEXTS


@MODES
@pytest.mark.parametrize(
    "wrong, said", [({"text_key": "body"}, r"'body'.*\['id', 'text'\]"), ({"split": "test"}, "data.split=test")]
)
def test_an_absent_column_or_split_is_named(
    hub_folder: Path, open_hub: Callable[..., Documents], wrong: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        list(open_hub(str(hub_folder), **wrong).read())


@MODES
def test_a_truncated_shard_is_an_error(hub_folder: Path, open_hub: Callable[..., Documents]) -> None:
    shard = next(iter(sorted(hub_folder.iterdir())))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=str(hub_folder)):
        list(open_hub(str(hub_folder)).read())


@MODES
def test_an_empty_data_set_is_named(tmp_path: Path, open_hub: Callable[..., Documents]) -> None:
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
        for number in range(start, len(HUB_TEXTS)):
            if number == start + self.good:
                raise OSError("broken pipe") from ConnectionResetError()
            yield number + 1, HUB_TEXTS[number]


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch, hub_folder: Path) -> Callable[[int], Flaky]:
    monkeypatch.setattr(hub, "DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (hub_folder / "train-00001-of-00002.parquet").unlink()

    def breaks_after(good: int) -> Flaky:
        flaky = Flaky(good)
        monkeypatch.setattr(files, "documents_in", flaky)
        return flaky

    return breaks_after


def test_a_connection_that_breaks_midway_loses_and_repeats_nothing(
    flaky: Callable[[int], Flaky], hub_folder: Path
) -> None:
    broken = flaky(100)
    assert list(hub_stream(str(hub_folder)).read()) == HUB_TEXTS
    assert broken.opened == 7


def test_a_connection_that_stays_broken_is_given_up(flaky: Callable[[int], Flaky], hub_folder: Path) -> None:
    flaky(0)
    with pytest.raises(ConnectionError, match="after 3 attempts.*data=files"):
        list(hub_stream(str(hub_folder)).read())


def test_a_stream_of_other_files_names_them(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\nhere\n")
    with pytest.raises(ValueError, match=r"train.csv cannot be streamed: allowed are .jsonl.*data.streaming=false"):
        hub_stream(str(tmp_path))


def test_a_stream_goes_on_from_any_place(hub_folder: Path) -> None:
    documents = hub_stream(str(hub_folder))
    walked = list(documents.walk())
    for at in (0, 1, 298, 299, 300, 498, 699):
        place, _ = walked[at]
        assert [text for _, text in documents.walk(place)] == [*HUB_TEXTS[at + 1 :], None]
