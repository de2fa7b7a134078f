"""What an objective asks of a batch, and the noise that belongs to its sequences."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.processes.denoiser import NO_CLASS
from di4c_lm.processes.rng import KeyedRng, Rng, uniform


@runtime_checkable
class Batch(Protocol):
    """Sequences and the numbers that key their noise."""

    x: Int64[Tensor, "B D"]
    sample_id: Int64[Tensor, " B"]
    epoch: Int64[Tensor, " B"]


@runtime_checkable
class StratifiedBatch(Batch, Protocol):
    """A batch that gives each of its sequences a part of [0, 1) of its own, in its global batch."""

    def spread(self, u: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """Uniforms `u`, one in each part."""
        ...


@runtime_checkable
class LabelledBatch(Batch, Protocol):
    """A batch whose examples have classes, from 0 on; `NO_CLASS` for one without."""

    labels: Int64[Tensor, " B"]


def classes_of(batch: Batch, drop: float, rng: Rng) -> Int64[Tensor, " B"] | None:
    """The classes that networks are told, each hidden with probability `drop`; None where the batch has none."""
    if not isinstance(batch, LabelledBatch):
        return None
    if drop == 0:
        return batch.labels
    return torch.where(uniform(rng, (len(batch.x),), batch.x.device) < drop, NO_CLASS, batch.labels)


def batch_rng(seed: int, batch: Batch) -> KeyedRng:
    """Noise keyed by (seed, sample id, epoch), so that neither rank nor batch can change it."""
    return KeyedRng(seed, torch.stack([batch.sample_id, batch.epoch], 1))
