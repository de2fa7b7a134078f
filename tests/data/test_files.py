"""Local files, whole and damaged."""

import gzip
import json
from pathlib import Path

import pytest

from di4c_lm.data.files import file_documents

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
