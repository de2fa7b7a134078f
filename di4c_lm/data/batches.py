"""The sequences of a run, in an order that depends on the seed alone and not on how many ranks share the work.

Sequences stand on one infinite line: epoch 0 in its order, then epoch 1 in its own, and so on. A *position* is a
place on that line.
"""

import dataclasses
import logging
import random
from collections.abc import Callable, Iterator
from typing import Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from di4c_lm.data.order import permutation

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Clean sequences, and who they are: noise is keyed by (seed, sample_id, epoch)."""

    x: Int[Tensor, "B D"]
    sample_id: Int[Tensor, " B"]
    epoch: Int[Tensor, " B"]

    def to(self, device: torch.device | str) -> "Batch":
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **moved)


@runtime_checkable
class Source(Protocol):
    """Anything that can say which sequences lie at the positions start, ..., start + count - 1."""

    def read(self, start: int, count: int) -> Batch: ...


def _batch(x_BD: Integer[np.ndarray, "B D"], sample_id: Int[np.ndarray, " B"], epoch: Int[np.ndarray, " B"]) -> Batch:
    return Batch(*(torch.from_numpy(part.astype(np.int64)) for part in (x_BD, sample_id, epoch)))


@final
class PackedSource:
    """Sequences that are all at hand (an array, in memory or mapped): any position is read at once.

    `sample_id` is the row of `tokens_ND`.
    """

    def __init__(self, tokens_ND: Integer[np.ndarray, "N D"], seed: int) -> None:
        if len(tokens_ND) == 0:
            raise ValueError("a source of batches needs at least one sequence, found none")
        self.tokens_ND = tokens_ND
        self.seed = seed
        self._orders: dict[int, Int[np.ndarray, " N"]] = {}

    def __len__(self) -> int:
        return len(self.tokens_ND)

    def _order(self, epoch: int) -> Int[np.ndarray, " N"]:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if abs(e - epoch) == 1}
            self._orders[epoch] = permutation(len(self), self.seed, epoch)
        return self._orders[epoch]

    def read(self, start: int, count: int) -> Batch:
        """`count` sequences from position `start` on."""
        epoch_B, index_B = np.divmod(np.arange(start, start + count), len(self))
        sample_id_B = np.empty_like(index_B)
        for epoch in np.unique(epoch_B):
            here_B = epoch_B == epoch
            sample_id_B[here_B] = self._order(int(epoch))[index_B[here_B]]
        return _batch(np.asarray(self.tokens_ND[sample_id_B]), sample_id_B, epoch_B)


@final
class StreamingSource:
    """Sequences that arrive one after the other, packed on the fly and mixed in a buffer.

    `open_blocks()` starts an epoch: blocks (n, D) of sequences in the corpus' order. `sample_id` counts them in that
    order. The buffer holds `shuffle_buffer` sequences, and the one it gives away next is a function of (seed, epoch)
    alone. A position behind the last one read is reached by going through the corpus again from its start, which is
    logged.
    """

    def __init__(
        self,
        open_blocks: Callable[[], Iterator[Integer[np.ndarray, "n D"]]],
        *,
        shuffle_buffer: int,
        seed: int,
        name: str,
    ) -> None:
        self.open_blocks = open_blocks
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.name = name
        self._line = self._samples()
        self._position = 0

    def _numbered(self) -> Iterator[tuple[int, np.ndarray]]:
        sample_id = 0
        for block_ND in self.open_blocks():
            for row_D in block_ND:
                yield sample_id, row_D.copy()
                sample_id += 1
        if sample_id == 0:
            raise ValueError(f"{self.name}: fewer tokens than one sequence were found")

    def _shuffled(self, epoch: int) -> Iterator[tuple[int, np.ndarray]]:
        rng = random.Random(f"{self.seed}/{epoch}")
        buffer: list[tuple[int, np.ndarray]] = []
        for sample in self._numbered():
            if len(buffer) < self.shuffle_buffer:
                buffer.append(sample)
                continue
            drawn = int(rng.random() * len(buffer))
            yield buffer[drawn]
            buffer[drawn] = sample
        for drawn in permutation(len(buffer), self.seed, epoch):
            yield buffer[drawn]

    def _samples(self) -> Iterator[tuple[int, int, np.ndarray]]:
        epoch = 0
        while True:
            for sample_id, row_D in self._shuffled(epoch):
                yield epoch, sample_id, row_D
            epoch += 1

    def _move_to(self, position: int) -> None:
        if position < self._position:
            self._line, self._position = self._samples(), 0
        if position - self._position > self.shuffle_buffer:
            logger.info(
                "%s: going through %d sequences to reach the one to go on with", self.name, position - self._position
            )
        while self._position < position:
            next(self._line)
            self._position += 1

    def read(self, start: int, count: int) -> Batch:
        """`count` sequences from position `start` on. Cheap only where `start` lies a little ahead of the last read."""
        self._move_to(start)
        epochs, sample_ids, rows = zip(*(next(self._line) for _ in range(count)), strict=True)
        self._position += count
        return _batch(np.stack(rows), np.array(sample_ids), np.array(epochs))


@final
class BatchStream:
    """One rank's share of a run's batches: each `next` is one micro-batch.

    A global batch is the next G = micro_batch_size * gradient_accumulation * world_size positions. Its micro-step j
    gives rank r the positions j * (micro_batch_size * world_size) + r * micro_batch_size + (0, ..., micro_batch_size
    - 1) of it, so that the sequences of a global batch, and of each optimiser step, are the same for any number of
    ranks with the same G.

    The state is the number of sequences that the whole run has used up in *finished* global batches: between two
    micro-steps of one accumulation window it still names the window's start, and a run resumed from it makes that
    window again from its first micro-step. The world size may be another one on resume.
    """

    def __init__(
        self,
        source: Source,
        *,
        micro_batch_size: int,
        gradient_accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= rank < world_size and micro_batch_size >= 1 and gradient_accumulation >= 1
        self.source = source
        self.micro_batch_size = micro_batch_size
        self.gradient_accumulation = gradient_accumulation
        self.rank = rank
        self.world_size = world_size
        self._consumed = 0
        self._micro_step = 0

    @property
    def global_batch_size(self) -> int:
        """G, sequences an optimiser step, over all ranks."""
        return self.micro_batch_size * self.gradient_accumulation * self.world_size

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        """The next micro-batch of this rank. The line of positions has no end."""
        offset = (self._micro_step * self.world_size + self.rank) * self.micro_batch_size
        batch = self.source.read(self._consumed + offset, self.micro_batch_size)
        self._micro_step += 1
        if self._micro_step == self.gradient_accumulation:
            self._consumed += self.global_batch_size
            self._micro_step = 0
        return batch

    def state_dict(self) -> dict[str, int]:
        """{"samples": sequences used up by all ranks in finished global batches}."""
        return {"samples": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the start of the global batch after the last finished one."""
        if set(state) != {"samples"} or state["samples"] < 0:
            raise ValueError(f"a data state must be {{'samples': a number of at least 0}}, found {state}")
        self._consumed = state["samples"]
        self._micro_step = 0
