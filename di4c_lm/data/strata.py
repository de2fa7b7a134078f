"""Batches that know which place each sequence has in its global batch, whatever the number of ranks."""

import dataclasses
import math
from typing import Any, final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.data.batches import BatchStream


@dataclasses.dataclass(frozen=True)
class Stratified:
    """A batch, of images with their `labels`, with the part of [0, 1) that belongs to each: part `stratum` of `num_strata` equal ones."""

    x: Int64[Tensor, "B D"]
    sample_id: Int64[Tensor, " B"]
    epoch: Int64[Tensor, " B"]
    stratum: Int64[Tensor, " B"]
    num_strata: int
    labels: Int64[Tensor, " B"] | None = None

    def spread(self, u: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """Uniforms `u`, one in each part: over a global batch they cover [0, 1) evenly, and each is still uniform over the batches."""
        return (self.stratum + u) / self.num_strata


@final
class StratifiedBatches:
    """`stream` with strata: each of the G sequences of a global batch has one of G parts, and neighbours have distant ones."""

    def __init__(self, stream: BatchStream) -> None:
        self._stream = stream
        self._micro_step = 0
        size = stream.global_batch_size
        near_golden = round(size * (math.sqrt(5) - 1) / 2)
        self._stride = next(s for s in range(max(1, near_golden), size + 2) if math.gcd(s, size) == 1)

    def __next__(self) -> Stratified:
        """The next micro-batch of this rank."""
        stream, batch = self._stream, next(self._stream)
        first = (self._micro_step * stream.world_size + stream.rank) * stream.micro_batch_size
        self._micro_step = (self._micro_step + 1) % stream.gradient_accumulation
        slot_B = torch.arange(first, first + len(batch.x))
        return Stratified(
            **vars(batch),
            stratum=slot_B * self._stride % stream.global_batch_size,
            num_strata=stream.global_batch_size,
        )

    def state_dict(self) -> dict[str, Any]:
        """That of the stream: between two micro-steps it names the start of the window."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        self._stream.load_state_dict(state)
        self._micro_step = 0
