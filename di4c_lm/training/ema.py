"""Exponential moving average of the float32 master weights, on each rank's own part."""

from typing import Any

import torch
from torch import Tensor

from di4c_lm.training.partition import Flats, Partition


class Ema:
    """theta_ema <- d theta_ema + (1 - d) theta, with d = min(decay, (1 + n) / (10 + n)) at update n = 1, 2, ...

    Laid out like the masters: of a model sharded over N ranks each holds 1/N. The ramp is that of TensorFlow's
    `ExponentialMovingAverage(num_updates=...)`, as in MDLM.
    """

    def __init__(self, partition: Partition, decay: float) -> None:
        self._partition = partition
        self._decay = decay
        self._updates = 0
        self._average: Flats = [master.detach().clone() for master in partition.flats]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the masters as they are after an optimiser step."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        for average, master in zip(self._average, self._partition.flats, strict=True):
            average.lerp_(master.detach(), 1 - decay)

    def gather(self) -> dict[str, Tensor]:
        """The averaged parameters by name, whole, on the CPU of rank 0; empty elsewhere. All ranks must call it."""
        return self._partition.gather(self._average)

    def flats(self) -> dict[str, Flats]:
        """What a checkpoint keeps, laid out like the masters."""
        return {"ema": self._average}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the tensors."""
        return {"updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`; the tensors of `flats` are filled in place by the caller."""
        self._updates = int(state["updates"])
