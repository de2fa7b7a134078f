"""The sequences of a run, in an order that depends on the seed alone and not on how many ranks share the work.

Sequences stand on one infinite line: epoch 0 in its order, then epoch 1 in its own, and so on. A *position* is a
place on that line. (A stream has a line for each rank: see `streaming`.)
"""

import dataclasses
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from di4c_lm.data.order import permutation


@dataclasses.dataclass(frozen=True)
class Batch:
    """Clean sequences, and who they are: noise is keyed by (seed, sample_id, epoch)."""

    x: Int[Tensor, "B D"]
    sample_id: Int[Tensor, " B"]
    epoch: Int[Tensor, " B"]

    def to(self, device: torch.device | str) -> "Batch":
        """The same on a device."""
        moved = {f.name: getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **moved)


@runtime_checkable
class Source(Protocol):
    """Anything that can say which sequences lie at the positions start, ..., start + count - 1."""

    def read(self, start: int, count: int) -> Batch:
        """The sequences at these positions, in order."""
        ...


@runtime_checkable
class Identified(Protocol):
    """A source that can be told from others: `identity` changes where a position would mean another sequence."""

    @property
    def identity(self) -> str:
        """The same for the same sequences in the same places."""
        ...


@runtime_checkable
class Share(Protocol):
    """One rank's part of a stream: what comes next, and where that is."""

    def take(self, count: int) -> Batch:
        """The next `count` sequences."""
        ...

    def mark(self) -> Any:
        """Where the share stands, cheap enough to be asked at every batch."""
        ...

    def state_of(self, mark: Any) -> dict[str, Any]:
        """A mark as plain values that a checkpoint can hold."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Sequences that are there only one after the other, for each rank those of its own documents."""

    def of_rank(self, rank: int, world_size: int) -> Share:
        """The share of one of `world_size` ranks."""
        ...


def make_batch(
    x_BD: Integer[np.ndarray, "B D"], sample_id: Int[np.ndarray, " B"], epoch: Int[np.ndarray, " B"]
) -> Batch:
    """A batch of arrays, as 64-bit tensors."""
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

    @property
    def identity(self) -> str:
        """The number of sequences."""
        return f"{len(self)} sequences"

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
        return make_batch(np.asarray(self.tokens_ND[sample_id_B]), sample_id_B, epoch_B)


@final
class BatchStream:
    """One rank's share of a run's batches: each `next` is one micro-batch.

    A global batch is the next G = micro_batch_size * gradient_accumulation * world_size positions. Its micro-step j
    gives rank r the positions j * (micro_batch_size * world_size) + r * micro_batch_size + (0, ..., micro_batch_size
    - 1) of it, so that the sequences of a global batch, and of each optimiser step, are the same for any number of
    ranks with the same G.

    The state is the number of sequences that the whole run has used up in *finished* global batches: between two
    micro-steps of one accumulation window it still names the window's start, and a run resumed from it makes that
    window again from its first micro-step. The world size may be another one on resume, unless `source` is a `Stream`,
    whose ranks read on their own and keep their own places.
    """

    def __init__(
        self,
        source: Source | Stream,
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
        self._identity = source.identity if isinstance(source, Identified) else ""
        self._share = source.of_rank(rank, world_size) if isinstance(source, Stream) else None
        self._mark = self._share.mark() if self._share else None

    @property
    def global_batch_size(self) -> int:
        """G, sequences an optimiser step, over all ranks."""
        return self.micro_batch_size * self.gradient_accumulation * self.world_size

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        """The next micro-batch of this rank. The line of positions has no end."""
        batch = self._read()
        self._micro_step += 1
        if self._micro_step == self.gradient_accumulation:
            self._consumed += self.global_batch_size
            self._micro_step = 0
            self._mark = self._share.mark() if self._share else None
        return batch

    def _read(self) -> Batch:
        if self._share is not None:
            return self._share.take(self.micro_batch_size)
        assert isinstance(self.source, Source)
        offset = (self._micro_step * self.world_size + self.rank) * self.micro_batch_size
        return self.source.read(self._consumed + offset, self.micro_batch_size)

    def state_dict(self) -> dict[str, Any]:
        """{"samples": sequences used up by all ranks in finished global batches} and the source's identity, or the stream's place."""
        if self._share is not None:
            return {"samples": self._consumed, "stream": self._share.state_of(self._mark)}
        return {"samples": self._consumed, "corpus": self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the start of the global batch after the last finished one.

        Raises `ValueError` for the state of another corpus, or of a stream where this is none, or the other way round.
        """
        place = "stream" if self._share is not None else "corpus"
        if set(state) != {"samples", place} or not isinstance(state["samples"], int) or state["samples"] < 0:
            raise ValueError(
                f"a data state must hold 'samples', a number of at least 0, and {place!r}, found the keys {sorted(state)}, "
                f"samples={state.get('samples')}: resume with the data.kind and data.streaming that the run began with"
            )
        if self._share is not None:
            self._share.load(state["stream"])
            self._mark = self._share.mark()
        elif state["corpus"] != self._identity:
            raise ValueError(
                f"the run was saved with a corpus of {state['corpus']} and cannot go on with one of {self._identity}: "
                "its sequences would be lost or seen twice. Resume with the same corpus"
            )
        self._consumed = state["samples"]
        self._micro_step = 0
