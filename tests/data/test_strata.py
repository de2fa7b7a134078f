"""Batches that know the part of [0, 1) that belongs to each of their sequences."""

import pytest
import torch

from di4c_lm.data.batches import BatchStream, PackedSource
from di4c_lm.data.strata import StratifiedBatches

STATES, LENGTH = 6, 6


def stream(rank: int, world: int, micro: int, accumulation: int) -> StratifiedBatches:
    source = PackedSource(torch.arange(48 * LENGTH).view(48, LENGTH).remainder(STATES).numpy(), seed=0)
    return StratifiedBatches(
        BatchStream(source, micro_batch_size=micro, gradient_accumulation=accumulation, rank=rank, world_size=world)
    )


@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 12, 1), (2, 3, 2), (3, 1, 4)])
def test_antithetic_times_cover_the_global_batch_for_any_number_of_ranks(
    world: int, micro: int, accumulation: int
) -> None:
    streams = [stream(rank, world, micro, accumulation) for rank in range(world)]
    for _ in range(2):
        found = [next(of_rank) for _ in range(accumulation) for of_rank in streams]
        strata = torch.cat([one.stratum for one in found])
        assert sorted(strata.tolist()) == list(range(12))
        t = torch.cat([one.spread(torch.full((micro,), 0.5).double()) for one in found])
        torch.testing.assert_close(t.sort().values, (torch.arange(12).double() + 0.5) / 12)
        whole = next(iter([stream(0, 1, 12, 1)]))
        assert torch.equal(next(whole).stratum, strata), "the stratum of a slot depends on the slot alone"


def test_a_resumed_stream_has_the_strata_of_an_unbroken_one() -> None:
    whole, resumed = stream(0, 1, 4, 3), stream(0, 1, 4, 3)
    for _ in range(4):
        next(whole)
    resumed.load_state_dict(whole.state_dict())
    next(resumed)
    for _ in range(4):
        a, b = next(whole), next(resumed)
        assert torch.equal(a.stratum, b.stratum)
        assert torch.equal(a.sample_id, b.sample_id)
