"""Laws of the order in which a run, on any number of ranks, sees its sequences."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.data.batches import (
    Batch,
    BatchStream,
    PackedSource,
    batch_rng,
    condition_of,
    first_sequences,
    permutation,
    random_index,
    scattered,
)
from di4c_lm.data.records.shards import Shards, ShardSource
from di4c_lm.processes.denoiser import NO_CLASS
from di4c_lm.processes.rng import KeyedRng
from tests.data.records.helpers import write_shards

D = 3
_FOLDER = tempfile.TemporaryDirectory()


def tokens(count: int) -> np.ndarray:
    """Sequences that can be told apart: row n is (3n, 3n + 1, 3n + 2)."""
    return np.arange(count * D, dtype=np.uint16).reshape(count, D)


def packed(count: int, seed: int = 0) -> PackedSource:
    return PackedSource(tokens(count), seed)


@functools.cache
def shards_of(count: int) -> Shards:
    """`tokens(count)` in shards of 5 sequences."""
    folder = Path(_FOLDER.name) / str(count)
    folder.mkdir()
    parts = [tokens(count)[start : start + 5] for start in range(0, count, 5)]
    write_shards(folder, parts)
    return Shards.read(folder)


def sharded(count: int, seed: int = 0) -> ShardSource:
    return ShardSource(shards_of(count), seed)


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


def strata_of(batch: Batch) -> torch.Tensor:
    assert batch.stratum is not None and batch.num_strata == 12
    return batch.stratum


def stratified(rank: int, world: int, micro: int, accumulation: int) -> BatchStream:
    return BatchStream(
        packed(48),
        micro_batch_size=micro,
        gradient_accumulation=accumulation,
        rank=rank,
        world_size=world,
        stratified=True,
    )


@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 12, 1), (2, 3, 2), (3, 1, 4)])
def test_antithetic_times_cover_the_global_batch_for_any_number_of_ranks(
    world: int, micro: int, accumulation: int
) -> None:
    streams = [stratified(rank, world, micro, accumulation) for rank in range(world)]
    for _ in range(2):
        found = [next(of_rank) for _ in range(accumulation) for of_rank in streams]
        strata = torch.cat([strata_of(one) for one in found])
        assert sorted(strata.tolist()) == list(range(12))
        t = torch.cat([one.spread(torch.full((micro,), 0.5).double()) for one in found])
        torch.testing.assert_close(t.sort().values, (torch.arange(12).double() + 0.5) / 12)
        assert torch.equal(strata_of(next(stratified(0, 1, 12, 1))), strata), (
            "the stratum of a slot depends on the slot alone"
        )


def test_a_resumed_stream_has_the_strata_of_the_unbroken_one() -> None:
    whole, resumed = stratified(0, 1, 4, 3), stratified(0, 1, 4, 3)
    for _ in range(4):
        next(whole)
    resumed.load_state_dict(whole.state_dict())
    next(resumed)
    for _ in range(4):
        a, b = next(whole), next(resumed)
        assert torch.equal(strata_of(a), strata_of(b))
        assert torch.equal(a.sample_id, b.sample_id)


def test_a_batch_without_strata_leaves_uniforms_as_they_are() -> None:
    batch, u_B = packed(4).read(0, 3), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert torch.equal(batch.spread(u_B), u_B)


@pytest.mark.parametrize("place", [(0, 0), (47, 2)])
def test_a_run_resumes_only_with_the_same_sequences(place: tuple[int, int]) -> None:
    """The number of sequences is the same: that they are others shows by their content alone."""
    other = tokens(48)
    other[place] += 1
    stream = BatchStream(packed(48), micro_batch_size=4)
    next(stream)
    state = stream.state_dict()
    BatchStream(PackedSource(tokens(48).astype(np.int64), seed=7), micro_batch_size=4).load_state_dict(state)
    with pytest.raises(ValueError, match="48 sequences .* cannot resume with one of 48 sequences"):
        BatchStream(PackedSource(other, 0), micro_batch_size=4).load_state_dict(state)


@given(st.integers(0, 300), st.integers(0, 2**63), st.integers(0, 10**6))
def test_each_number_is_there_once(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permutation(size, seed, epoch)), np.arange(size))


def test_the_order_is_frozen() -> None:
    """A changed order would change every resumed run and every published trace."""
    assert permutation(8, 0, 0).tolist() == [2, 0, 7, 5, 4, 6, 1, 3]
    assert permutation(8, 1, 2).tolist() == [7, 5, 2, 4, 6, 0, 1, 3]


@pytest.mark.parametrize("other", [(0, 1), (1, 0), (1, 1)])
def test_seeds_and_epochs_differ(other: tuple[int, int]) -> None:
    same = (permutation(1000, 0, 0) == permutation(1000, *other)).sum()
    assert same < 10  # 1 expected by chance


def test_every_place_is_reached_equally_often() -> None:
    """Over 2,000 epochs of 10 samples, sample 0 lands on each place about 200 times (standard deviation 13)."""
    places = np.bincount(
        [int(np.flatnonzero(permutation(10, 3, epoch) == 0)[0]) for epoch in range(2000)], minlength=10
    )
    assert np.abs(places - 200).max() < 65


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 10**6))
def test_each_number_is_scattered_once(size: int, seed: int, epoch: int) -> None:
    assert np.array_equal(np.sort(scattered(np.arange(size), size, seed, epoch)), np.arange(size))


@given(st.integers(1, 2**40), st.data())
def test_a_part_is_scattered_as_the_whole(size: int, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    together = scattered(np.array(places), size, 7, 1)
    assert together.tolist() == [int(scattered(np.array([place]), size, 7, 1)[0]) for place in places]
    assert len(set(together.tolist())) == len(places)
    assert together.min() >= 0 and together.max() < size


def test_the_scattering_is_frozen() -> None:
    assert scattered(np.arange(8), 8, 0, 0).tolist() == [7, 6, 4, 1, 5, 0, 3, 2]
    assert [random_index(100, 0, 0, number) for number in range(4)] == [45, 71, 22, 44]


@pytest.mark.parametrize("size", [10, 17])
def test_scattering_reaches_every_place_equally_often(size: int) -> None:
    """Over 400 epochs each pair of (place, number) is met about 400 / size times, neighbours as often in either order."""
    orders = np.stack([scattered(np.arange(size), size, 3, epoch) for epoch in range(400)])
    met = np.stack([np.bincount(orders[:, place], minlength=size) for place in range(size)])
    expected = 400 / size
    assert np.abs(met - expected).max() < 5 * expected**0.5
    assert abs((orders[:, 0] < orders[:, 1]).mean() - 0.5) < 0.12


def test_seeds_and_epochs_scatter_differently() -> None:
    first = scattered(np.arange(1000), 1000, 0, 0)
    for other in ((0, 1), (1, 0), (1, 1)):
        assert (first == scattered(np.arange(1000), 1000, *other)).sum() < 10


def test_random_indices_are_uniform() -> None:
    found = np.bincount([random_index(10, 3, 1, number) for number in range(5000)], minlength=10)
    assert np.abs(found - 500).max() < 110  # 5 standard deviations


def labelled(count: int) -> Batch:
    ids = torch.arange(count)
    return Batch(x=torch.zeros(count, 2).long(), sample_id=ids, epoch=torch.zeros_like(ids), labels=ids % 10)


def test_classes_are_hidden_at_the_rate_asked_for_and_by_the_samples_own_noise() -> None:
    batch = labelled(20_000)
    told = condition_of(batch, 0.1, batch_rng(0, batch))
    assert told is not None and batch.labels is not None
    hidden = told == NO_CLASS
    assert abs(float(hidden.double().mean()) - 0.1) < 0.01
    assert torch.equal(told[~hidden], batch.labels[~hidden])
    part = Batch(*(column[7:19] for column in (batch.x, batch.sample_id, batch.epoch, batch.labels)))
    again = condition_of(part, 0.1, batch_rng(0, part))
    assert again is not None and torch.equal(again, told[7:19])


def test_without_classes_nothing_is_drawn_and_none_are_told() -> None:
    batch = labelled(3)
    rng, other = (KeyedRng(0, torch.arange(3)) for _ in range(2))
    assert condition_of(dataclasses.replace(batch, labels=None), 0.5, rng) is None
    assert condition_of(batch, 0.0, rng) is batch.labels
    assert torch.equal(rng.uniform((3,)), other.uniform((3,)))


@pytest.mark.parametrize("num", [5, 300])
def test_the_first_sequences_are_read_once(num: int) -> None:
    tokens = torch.arange(num * 4).view(num, 4).numpy()
    found = first_sequences(PackedSource(tokens, 0), 4)
    assert sorted(found[:, 0].tolist()) == list(range(0, num * 4, 4))
