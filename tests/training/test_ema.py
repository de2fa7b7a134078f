"""The average of the weights, on its own; within real runs: test_engine.py."""

import pytest
import torch

from di4c_lm.training.ema import Ema
from di4c_lm.training.partition import Partition, Piece


def test_equals_the_recurrence_with_its_ramp():
    master = torch.zeros(3)
    piece = Piece(name="w", start=0, numel=3, flat=0, offset=0)
    ema = Ema(Partition(flats=[master], pieces=[piece], shapes={"w": (3,)}, replicated=True), decay=0.3)
    expected = torch.zeros(3)
    for n in range(1, 12):
        master += torch.arange(1.0, 4.0) / n
        ema.update()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * master
    torch.testing.assert_close(ema.gather()["w"], expected)
    assert ema.state_dict() == {"updates": 11}


def test_goes_on_from_its_state():
    partition = Partition(
        flats=[torch.ones(2)],
        pieces=[Piece(name="w", start=0, numel=2, flat=0, offset=0)],
        shapes={"w": (2,)},
        replicated=True,
    )
    first, second = Ema(partition, decay=0.9), Ema(partition, decay=0.9)
    first.update()
    second.load_state_dict(first.state_dict())
    second.flats()["ema"][0].copy_(first.flats()["ema"][0])
    partition.flats[0].mul_(5)
    first.update()
    second.update()
    assert torch.equal(first.gather()["w"], second.gather()["w"])
    assert first.gather()["w"].tolist() == pytest.approx([0.25 * 1 + 0.75 * 5] * 2)
