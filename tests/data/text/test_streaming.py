"""Laws of streams: what each rank gives, and that it goes on exactly."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.data.batches import Batch, BatchStream
from di4c_lm.data.text import packing
from di4c_lm.data.text.corpus import load_corpus
from di4c_lm.data.text.documents import Place
from di4c_lm.data.text.packing import Cursor, Run
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.streaming import StreamingSource

D = 3


def numbers(
    count: int, *, shuffle_buffer: int = 4, run: int = 7, opened: list[Cursor] | None = None
) -> StreamingSource:
    """`count` sequences, of which rank r has the documents r, r + world size, ...; `run` tokens of them come at once.

    Sequence n of a rank is (n D, n D + 1, n D + 2), plus 10,000 times the rank. `opened` gets the cursors that runs were asked from.
    """

    def open_runs(cursor: Cursor, rank: int, world_size: int) -> Iterator[Run]:
        if opened is not None:
            opened.append(cursor)
        own = len(range(rank, count, world_size)) * D
        for start in range(cursor.place.offset, own, run):
            end = min(start + run, own)
            line_N = np.arange(start, end, dtype=np.uint16) + np.uint16(10_000 * rank)
            yield Run(tokens_N=line_N, cursor=Cursor(place=Place(offset=end)), held_out=[])

    return StreamingSource(
        open_runs=open_runs, length=D, shuffle_buffer=shuffle_buffer, seed=5, name="numbers", identity="numbers"
    )


def names(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.epoch.tolist(), batch.sample_id.tolist(), strict=True))


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(4, 40),
    world=st.integers(1, 4),
    shuffle_buffer=st.integers(1, 50),
    run=st.integers(1, 30),
    epochs=st.integers(1, 3),
)
def test_each_epoch_of_each_rank_sees_each_of_its_samples_once(
    count: int, world: int, shuffle_buffer: int, run: int, epochs: int
) -> None:
    every = set()
    for rank in range(world):
        own = len(range(rank, count, world))
        stream = numbers(count, shuffle_buffer=shuffle_buffer, run=run).of_rank(rank, world)
        for epoch in range(epochs):
            batch = stream.take(own)
            assert sorted(names(batch)) == [(epoch, n * world + rank) for n in range(own)]
            assert torch.equal(batch.x[:, 0], batch.sample_id // world * D + 10_000 * rank)
        every |= set(batch.sample_id.tolist())
    assert every == set(range(count))


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(4, 30),
    before=st.integers(0, 20),
    world=st.integers(1, 2),
    shuffle_buffer=st.integers(1, 40),
    accumulation=st.integers(1, 3),
)
def test_a_resumed_stream_gives_what_the_unbroken_one_gives(
    count: int, before: int, world: int, shuffle_buffer: int, accumulation: int
) -> None:
    for rank in range(world):
        ranks: dict[str, Any] = {
            "micro_batch_size": 2, "rank": rank, "world_size": world, "gradient_accumulation": accumulation,
        }  # fmt: skip
        whole = BatchStream(numbers(count, shuffle_buffer=shuffle_buffer), **ranks)
        for _ in range(before * accumulation):
            next(whole)
        state = json.loads(json.dumps(whole.state_dict()))
        rest = [names(next(whole)) for _ in range(12)]
        resumed = BatchStream(numbers(count, shuffle_buffer=shuffle_buffer), **ranks)
        next(resumed)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert [names(next(resumed)) for _ in range(12)] == rest


def test_inside_a_window_the_state_is_its_start() -> None:
    stream = BatchStream(numbers(20), micro_batch_size=2, gradient_accumulation=3)
    for _ in range(3):
        next(stream)
    state = stream.state_dict()
    window = [names(next(stream)) for _ in range(2)]
    assert stream.state_dict() == state
    stream.load_state_dict(state)
    assert [names(next(stream)) for _ in range(2)] == window


def test_resuming_reads_on_and_not_again() -> None:
    stream = BatchStream(numbers(1000, run=30), micro_batch_size=5)
    for _ in range(100):
        next(stream)
    state = stream.state_dict()
    opened: list[Cursor] = []
    resumed = BatchStream(numbers(1000, run=30, opened=opened), micro_batch_size=5)
    resumed.load_state_dict(state)
    for _ in range(10):
        next(resumed)
    assert [cursor.place.offset for cursor in opened] == [state["stream"]["cursor"]["place"]["offset"]]
    assert opened[0].place.offset >= 500 * D


def test_epochs_are_in_different_orders_and_the_buffer_mixes_within_its_size() -> None:
    stream = numbers(40).of_rank(0, 1)
    first, second = (stream.take(40).sample_id.tolist() for _ in range(2))
    assert first != second
    assert first != sorted(first)
    assert all(sample - place <= 4 for place, sample in enumerate(first))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"world_size": 1, "rank": 0}, "saved with world_size=2 .*prepared shards resume with any number"),
        ({"rank": 1}, "saved with rank=0"),
    ],
)
def test_another_number_of_ranks_is_refused(change: dict[str, int], said: str) -> None:
    two: Any = {"rank": 0, "world_size": 2}
    state = BatchStream(numbers(9), micro_batch_size=1, **two).state_dict()
    with pytest.raises(ValueError, match=said):
        BatchStream(numbers(9), micro_batch_size=1, **(two | change)).load_state_dict(state)


def test_a_rank_without_a_sequence_is_an_error() -> None:
    with pytest.raises(ValueError, match="numbers: fewer tokens than one sequence of data.length=3.* rank 2 of 3"):
        numbers(2).of_rank(2, 3).take(1)


def test_an_error_while_reading_reaches_the_one_who_asks() -> None:
    def open_runs(*_: object) -> Iterator[Run]:
        raise ValueError("a.jsonl: damaged")
        yield

    source = StreamingSource(open_runs=open_runs, length=D, shuffle_buffer=2, seed=0, name="broken")
    with pytest.raises(ValueError, match="a.jsonl: damaged"):
        source.of_rank(0, 1).take(1)


TEXTS = [f"Text {n} tells of {n * n} things,\nand of {n**3} more in x_{n}. " * (1 + n % 5) for n in range(300)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files, one of them parquet; document 20 is huge for the limits below."""
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "corpus"
    path.mkdir()
    texts = [*TEXTS[:20], "one very long document " * 300, *TEXTS[20:]]
    (path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[:150]))
    table = pyarrow.table({"text": texts[150:]})
    pyarrow.parquet.write_table(table, path / "b.parquet", row_group_size=40)
    return path


@pytest.mark.parametrize("world", [1, 2, 3])
def test_real_files_resume_in_the_midst_of_documents(folder: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """At every step: the state goes through JSON into a new corpus, which gives the next batch as the first one does."""
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 1500)
    monkeypatch.setattr(packing, "PIECE_CHARACTERS", 400)
    config = DataConfig(kind="files", path=str(folder), length=32, vocab_size=300, streaming=True, shuffle_buffer=6)
    corpora = [load_corpus(config, 1, folder.parent) for _ in range(2)]
    in_pieces = 0
    for rank in range(world):
        whole, other = (
            BatchStream(corpus.train, micro_batch_size=9, rank=rank, world_size=world) for corpus in corpora
        )
        for _ in range(25):
            state = json.loads(json.dumps(whole.state_dict()))
            in_pieces += state["stream"]["cursor"]["pieces"] > 0
            other.load_state_dict(state)
            expected, found = next(whole), next(other)
            assert names(found) == names(expected)
            assert torch.equal(found.x, expected.x)
    assert in_pieces, "some state lay within the huge document"


def test_the_state_of_another_corpus_is_refused(folder: Path) -> None:
    config = DataConfig(kind="files", path=str(folder), length=32, vocab_size=300, streaming=True)
    state = BatchStream(load_corpus(config, 1, folder.parent).train, micro_batch_size=1).state_dict()
    with open(folder / "a.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"text": "one more"}')
    grown = BatchStream(load_corpus(config, 1, folder.parent).train, micro_batch_size=1)
    with pytest.raises(ValueError, match="saved with corpus=.*the same corpus, tokenizer, data.length"):
        grown.load_state_dict(state)
