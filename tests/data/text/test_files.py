"""Local files, whole and damaged."""

import gzip
import json
from pathlib import Path

import pytest

from di4c_lm.data.text.files import file_documents

LINES = [{"text": "first"}, {"text": "second\n\nstill second"}, {"text": "third"}]
TEXTS = [record["text"] for record in LINES]


def jsonl(records: list[dict[str, str]]) -> bytes:
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


def test_another_text_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", jsonl([{"content": "here"}]))
    assert list(file_documents(path, text_key="content").read()) == ["here"]


@pytest.mark.parametrize("paths", ["{}/absent.txt", "{}/table.csv", "{}/folder", ", "])
def test_paths_that_cannot_serve_are_named_before_reading(tmp_path: Path, paths: str) -> None:
    write(tmp_path / "table.csv", b"a,b")
    write(tmp_path / "folder/notes.md", b"nothing of ours")
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
    with pytest.raises(ValueError, match=rf"{path}: no column 'body' \(data.text_key\), found \['text'\]"):
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
