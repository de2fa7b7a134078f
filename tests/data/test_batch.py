"""Classes of a batch, told or hidden."""

import dataclasses

import torch
from torch import Tensor

from di4c_lm.data.batch import batch_rng, classes_of
from di4c_lm.processes.denoiser import NO_CLASS
from di4c_lm.processes.rng import KeyedRng


@dataclasses.dataclass
class Plain:
    x: Tensor
    sample_id: Tensor
    epoch: Tensor


@dataclasses.dataclass
class Labelled(Plain):
    labels: Tensor


def labelled(count: int) -> Labelled:
    ids = torch.arange(count)
    return Labelled(x=torch.zeros(count, 2).long(), sample_id=ids, epoch=torch.zeros_like(ids), labels=ids % 10)


def test_classes_are_hidden_at_the_rate_asked_for_and_by_the_samples_own_noise() -> None:
    batch = labelled(20_000)
    told = classes_of(batch, 0.1, batch_rng(0, batch))
    assert told is not None
    hidden = told == NO_CLASS
    assert abs(float(hidden.double().mean()) - 0.1) < 0.01
    assert torch.equal(told[~hidden], batch.labels[~hidden])
    part = dataclasses.replace(batch, **{name: value[7:19] for name, value in vars(batch).items()})
    again = classes_of(part, 0.1, batch_rng(0, part))
    assert again is not None and torch.equal(again, told[7:19])


def test_without_classes_nothing_is_drawn_and_none_are_told() -> None:
    batch = labelled(3)
    rng, other = (KeyedRng(0, torch.arange(3)) for _ in range(2))
    assert classes_of(Plain(batch.x, batch.sample_id, batch.epoch), 0.5, rng) is None
    assert classes_of(batch, 0.0, rng) is batch.labels
    assert torch.equal(rng.uniform((3,)), other.uniform((3,)))
