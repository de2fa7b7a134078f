"""Laws of the order in which a run, on any number of ranks, sees its sequences."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.data.batches import Batch, BatchStream, PackedSource
from di4c_lm.data.records.shards import Index, ShardSource
from tests.data.records.shard_folders import write_shards

D = 3
_FOLDER = tempfile.TemporaryDirectory()


def tokens(count: int) -> np.ndarray:
    """Sequences that can be told apart: row n is (3n, 3n + 1, 3n + 2)."""
    return np.arange(count * D, dtype=np.uint16).reshape(count, D)


def packed(count: int, seed: int = 0) -> PackedSource:
    return PackedSource(tokens(count), seed)


@functools.cache
def shards_of(count: int) -> tuple[Path, Index]:
    """`tokens(count)` in shards of 5 sequences."""
    folder = Path(_FOLDER.name) / str(count)
    folder.mkdir()
    parts = [tokens(count)[start : start + 5] for start in range(0, count, 5)]
    return folder, write_shards(folder, parts)


def sharded(count: int, seed: int = 0) -> ShardSource:
    return ShardSource(*shards_of(count), seed)


def names(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.epoch.tolist(), batch.sample_id.tolist(), strict=True))


def global_batches(
    source_of, windows: int, *, micro: int, accumulation: int, world: int
) -> list[list[tuple[int, int]]]:
    """Per optimiser step, the (epoch, sample id) of all ranks and micro-steps."""
    ranks = [
        BatchStream(source_of(), micro_batch_size=micro, gradient_accumulation=accumulation, rank=r, world_size=world)
        for r in range(world)
    ]
    return [
        [name for _ in range(accumulation) for stream in ranks for name in names(next(stream))] for _ in range(windows)
    ]


SOURCES = pytest.mark.parametrize("make", [packed, sharded])


@SOURCES
@pytest.mark.parametrize(
    "micro, accumulation, world", [(4, 1, 1), (2, 2, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2), (1, 1, 4)]
)
def test_global_batches_do_not_depend_on_the_ranks(make, micro: int, accumulation: int, world: int) -> None:
    """Not even in their order: micro-steps, then ranks, walk along the line of positions."""

    def run(**cut: int) -> list[list[tuple[int, int]]]:
        return global_batches(lambda: make(11, seed=5), 9, **cut)

    assert run(micro=micro, accumulation=accumulation, world=world) == run(micro=4, accumulation=1, world=1)


@SOURCES
@settings(max_examples=30, deadline=None)
@given(count=st.integers(3, 40), seed=st.integers(0, 2**32), micro=st.integers(1, 7), epochs=st.integers(1, 3))
def test_each_epoch_sees_each_sample_once(make, count: int, seed: int, micro: int, epochs: int) -> None:
    stream = BatchStream(make(count, seed), micro_batch_size=micro)
    seen = [name for _ in range(-(-count * epochs // micro)) for name in names(next(stream))][: count * epochs]
    for epoch in range(epochs):
        part = seen[epoch * count : (epoch + 1) * count]
        assert sorted(part) == [(epoch, n) for n in range(count)]


@SOURCES
def test_epochs_are_in_different_orders(make) -> None:
    batch = make(50).read(0, 100)
    assert batch.sample_id[:50].tolist() != batch.sample_id[50:].tolist()
    assert batch.sample_id[:50].tolist() != list(range(50))


@SOURCES
def test_sample_ids_name_the_sequences(make) -> None:
    batch = make(20).read(7, 30)
    assert torch.equal(batch.x, torch.from_numpy(tokens(20).astype(np.int64))[batch.sample_id])
    assert batch.x.dtype == batch.sample_id.dtype == batch.epoch.dtype == torch.int64


@SOURCES
@settings(max_examples=30, deadline=None)
@given(
    before=st.integers(0, 12),
    after=st.integers(1, 8),
    accumulation=st.integers(1, 3),
    worlds=st.sampled_from([1, 2, 4]),
)
def test_resume_goes_on_exactly(make, before: int, after: int, accumulation: int, worlds: int) -> None:
    """A new stream, given the state, yields what the old one would have; also on another number of ranks."""
    whole = global_batches(lambda: make(13), before + after, micro=4 * accumulation, accumulation=1, world=1)
    first = BatchStream(make(13), micro_batch_size=4, gradient_accumulation=accumulation)
    for _ in range(before * accumulation):
        next(first)
    state = first.state_dict()
    assert state["samples"] == before * 4 * accumulation
    ranks = [
        BatchStream(
            make(13), micro_batch_size=4 // worlds, gradient_accumulation=accumulation, rank=r, world_size=worlds
        )
        for r in range(worlds)
    ]
    for stream in ranks:
        stream.load_state_dict(state)
    resumed = [
        [name for _ in range(accumulation) for stream in ranks for name in names(next(stream))] for _ in range(after)
    ]
    assert resumed == whole[before:]


def test_inside_a_window_the_state_is_its_start() -> None:
    stream = BatchStream(packed(20), micro_batch_size=2, gradient_accumulation=3)
    window = [names(next(stream)) for _ in range(3)]
    next(stream)
    assert stream.state_dict()["samples"] == 6
    second = BatchStream(packed(20), micro_batch_size=2, gradient_accumulation=3)
    next(second)
    assert second.state_dict()["samples"] == 0
    second.load_state_dict(second.state_dict())
    assert [names(next(second)) for _ in range(3)] == window


def test_another_batch_size_goes_on_behind_what_was_used() -> None:
    stream = BatchStream(packed(30), micro_batch_size=5)
    next(stream)
    other = BatchStream(packed(30), micro_batch_size=3)
    other.load_state_dict(stream.state_dict())
    assert names(next(other)) == names(next(stream))[:3]


@pytest.mark.parametrize(
    "state, said",
    [
        ({}, "samples"),
        ({"samples": -1, "corpus": "3 sequences"}, "samples=-1"),
        ({"samples": 1, "stream": {}}, "data.streaming"),
        ({"samples": 1, "corpus": "4 sequences"}, "a corpus of 4 sequences.*one of 3 sequences"),
    ],
)
def test_a_state_of_another_kind_or_corpus_is_refused(state: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BatchStream(packed(3), micro_batch_size=1).load_state_dict(state)


def test_no_sequence_is_an_error() -> None:
    with pytest.raises(ValueError, match="one sequence"):
        packed(0)


def test_batch_moves_as_a_whole() -> None:
    moved = packed(4).read(0, 2).to("meta")
    assert {moved.x.device.type, moved.sample_id.device.type, moved.epoch.device.type} == {"meta"}
