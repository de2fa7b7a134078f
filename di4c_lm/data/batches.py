"""The sequences of a run, in an order that depends on the seed alone and not on how many ranks share the work.

Sequences stand on one infinite line: epoch 0 in its order, then epoch 1 in its own, and so on. A *position* is a
place on that line. (A stream has a line for each rank: see `data/text/streaming.py`.)
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64, Integer, UInt
from torch import Tensor

from di4c_lm.processes.denoiser import NO_CLASS
from di4c_lm.processes.process import Process
from di4c_lm.processes.rng import KeyedRng, Rng, uniform

_ROWS_AT_ONCE = 1 << 14
_ROUNDS = 6
_WINDOW, _STRETCH = 1024, 64  # sequences that are sorted by width together, and of like width that stay together
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


# Batches and their noise


@dataclasses.dataclass(frozen=True)
class Batch:
    """Clean sequences, and who they are: noise is keyed by (seed, sample_id, epoch)."""

    x: Int64[Tensor, "B D"]
    sample_id: Int64[Tensor, " B"]
    epoch: Int64[Tensor, " B"]
    labels: Int64[Tensor, " B"] | None = None  # classes, from 0 on; `NO_CLASS` for a sequence without one
    _: dataclasses.KW_ONLY
    stratum: Int64[Tensor, " B"] | None = None  # which of `num_strata` equal parts of [0, 1) belongs to each
    num_strata: int = 1
    given: Int64[Tensor, " B"] | None = (
        None  # how many tokens at the beginning of each are given: never masked, never scored
    )
    parts: Int64[Tensor, "B D"] | None = (
        None  # of rows of records: 2k where the k-th of a row (from 1 on) is learned, 2k + 1 where it is given, 0 where there is none
    )
    noised: "Noised | None" = None  # what was made of each before training, in place of noise that is sampled now

    @property
    def is_given(self) -> Bool[Tensor, "B D"] | None:
        """The positions that are never masked and never scored: what is given, and padding."""
        if self.parts is not None:
            return (self.parts == 0) | (self.parts % 2 == 1)
        return None if self.given is None else torch.arange(self.x.shape[1], device=self.x.device) < self.given[:, None]

    @property
    def segments(self) -> Int64[Tensor, "B D"] | None:
        """The number of the record at each position, from 1 on, 0 at padding; None where each row is one sequence, all of it."""
        return None if self.parts is None else self.parts // 2

    def spread(self, u: Float64[Tensor, " B"]) -> Float64[Tensor, " B"]:
        """Uniforms `u`, each in the part of its sequence: over a global batch they cover [0, 1) evenly, and each is still uniform over
        the batches. Without strata `u` itself."""
        return u if self.stratum is None else (self.stratum + u) / self.num_strata


@dataclasses.dataclass(frozen=True)
class Noised:
    """x_t of sequences, and what a network has said of it: its features at the M masked positions, one sequence after the other."""

    x_t: Int64[Tensor, "B D"]
    t: Float64[Tensor, " B"]
    s: Float64[Tensor, " B"]  # where the step from t leads; 0 where t is of no step
    features: Float[Tensor, "M H"] | None = None


def make_batch(
    x_BD: Integer[np.ndarray, "B D"], sample_id: Int[np.ndarray, " B"], epoch: Int[np.ndarray, " B"]
) -> Batch:
    """A batch of arrays, as 64-bit tensors."""
    return Batch(*(torch.from_numpy(part.astype(np.int64)) for part in (x_BD, sample_id, epoch)))


def noised(process: Process, batch: Batch, t: Float[Tensor, " B"], rng: Rng) -> Int64[Tensor, "B D"]:
    """x_t ~ q(x_t | x_0) of the batch, in which what is given stands as it is."""
    x_t, is_given_BD = process.corrupt(batch.x, t, rng), batch.is_given
    return x_t if is_given_BD is None else torch.where(is_given_BD, batch.x, x_t)


def batch_rng(seed: int, batch: Batch) -> KeyedRng:
    """Noise keyed by (seed, sample id, epoch), so that neither rank nor batch can change it."""
    return KeyedRng(seed, torch.stack([batch.sample_id, batch.epoch], 1))


def condition_of(batch: Batch, drop: float, rng: Rng) -> Int64[Tensor, "B *each"] | None:
    """What a network is given beside x_t: classes, each hidden with probability `drop`, or `segments`; None where there are neither."""
    if batch.labels is None:
        return batch.segments
    if drop == 0:
        return batch.labels
    return torch.where(uniform(rng, (len(batch.x),), batch.x.device) < drop, NO_CLASS, batch.labels)


# The order of an epoch, a function of (seed, epoch) alone: no state to save, the same with any version of NumPy


def mix(x: UInt[np.ndarray, " N"]) -> UInt[np.ndarray, " N"]:
    """A bijection of the 64-bit integers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(seed: int, epoch: int) -> UInt[np.ndarray, " 1"]:
    return mix(mix(np.array([seed], dtype=np.uint64) + _GOLDEN) ^ np.array([epoch], dtype=np.uint64) + _GOLDEN)


def permutation(size: int, seed: int, epoch: int) -> Int[np.ndarray, " N"]:
    """The numbers 0..size-1 in the order of epoch `epoch` (int64)."""
    return np.argsort(mix(_key(seed, epoch) + np.arange(1, size + 1, dtype=np.uint64) * _GOLDEN), kind="stable")


def scattered(index_B: Int[np.ndarray, " B"], size: int, seed: int, epoch: int) -> Int[np.ndarray, " B"]:
    """What stands at the places `index_B` of another order of 0..size-1 than `permutation`'s, at no cost for the other places.

    A Feistel network (Luby and Rackoff 1988) permutes the numbers of 2k bits, 4^k >= size; one that leaves 0..size-1 goes through again
    until it is back (cycle walking: Black and Rogaway 2002), at most some times, as 4^k < 4 size.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = mix(_key(seed, epoch) + np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _GOLDEN)
    found_B = index_B.astype(np.uint64)
    outside_B = np.ones(len(found_B), dtype=bool)
    while outside_B.any():
        left, right = found_B[outside_B] >> half, found_B[outside_B] & mask
        for key in keys:
            left, right = right, left ^ (mix(right + key) & mask)
        found_B[outside_B] = left << half | right
        outside_B = found_B >= np.uint64(size)
    return found_B.astype(np.int64)


def random_index(size: int, seed: int, epoch: int, number: int) -> int:
    """The `number`-th random index of an epoch, uniform on 0..size-1 (to 2^-64)."""
    value = mix(_key(seed, epoch) ^ mix(np.array([number], dtype=np.uint64) + _GOLDEN))
    return int(value[0]) * size >> 64


def in_epochs(
    start: int, count: int, size: int, rows_at: Callable[[int, Int[np.ndarray, " B"]], Int[np.ndarray, " B"]]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """Row and epoch of `count` positions from `start` on; `rows_at(epoch, places)` are the rows at places of an epoch of `size`."""
    epoch_N, index_N = np.divmod(np.arange(start, start + count), size)
    row_N = np.empty_like(index_N)
    for epoch in np.unique(epoch_N):
        here_N = epoch_N == epoch
        row_N[here_N] = rows_at(int(epoch), index_N[here_N])
    return row_N, epoch_N


def cut(batch: Batch) -> Batch:
    """A batch of rows with `parts` without the columns that are padding in all of them."""
    if batch.parts is None:
        return batch
    width = max(1, int((batch.parts > 0).any(0).nonzero().max() + 1)) if bool(batch.parts.any()) else 1
    noised = batch.noised and dataclasses.replace(batch.noised, x_t=batch.noised.x_t[:, :width])
    return dataclasses.replace(batch, x=batch.x[:, :width], parts=batch.parts[:, :width], noised=noised)


@final
class LikeWidths:
    """An order of each epoch in which neighbours are of like width, so that a batch has little padding.

    Windows of another order, `rows_at(epoch, places)`, are sorted by width and cut into stretches, whose order in the window is random.
    """

    def __init__(
        self,
        rows_at: Callable[[int, Int[np.ndarray, " B"]], Int[np.ndarray, " B"]],
        widths_of: Callable[[Int[np.ndarray, " B"]], Int[np.ndarray, " B"]],
        size: int,
        seed: int,
    ) -> None:
        self._rows_at, self._widths_of, self._size, self._seed = rows_at, widths_of, size, seed
        self._window = functools.lru_cache(maxsize=2)(self._made)

    def __call__(self, epoch: int, place_B: Int[np.ndarray, " B"]) -> Int[np.ndarray, " B"]:
        """The rows at places of the order."""
        window_B, within_B = np.divmod(place_B, _WINDOW)
        row_B = np.empty_like(place_B)
        for window in np.unique(window_B):
            here_B = window_B == window
            row_B[here_B] = self._window(epoch, int(window))[within_B[here_B]]
        return row_B

    def _made(self, epoch: int, window: int) -> Int[np.ndarray, " W"]:
        place_W = np.arange(window * _WINDOW, min(self._size, (window + 1) * _WINDOW))
        row_W = self._rows_at(epoch, place_W)
        row_W = row_W[np.argsort(self._widths_of(row_W), kind="stable")]
        stretches = np.split(row_W, range(_STRETCH, len(row_W), _STRETCH))
        return np.concatenate([stretches[n] for n in permutation(len(stretches), self._seed + window + 1, epoch)])


# Where sequences come from


@runtime_checkable
class Source(Protocol):
    """Anything that can say which sequences lie at the positions start, ..., start + count - 1."""

    def __len__(self) -> int:
        """The number of sequences; those at positions from here on are of the next epoch."""
        ...

    @property
    def identity(self) -> str:
        """The same for the same sequences in the same places, whatever the seed."""
        ...

    def read(self, start: int, count: int) -> Batch:
        """The sequences at these positions, in order."""
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
        """Resume from a state."""
        ...


@runtime_checkable
class Stream(Protocol):
    """Sequences that are there only one after the other, for each rank those of its own documents."""

    def of_rank(self, rank: int, world_size: int) -> Share:
        """The share of one of `world_size` ranks."""
        ...


@final
class PackedSource:
    """Sequences that are all at hand (an array, in memory or mapped): any position is read at once.

    `sample_id` is the row of `tokens_ND`.
    """

    def __init__(
        self,
        tokens_ND: Integer[np.ndarray, "N D"],
        seed: int,
        given_N: Int64[np.ndarray, " N"] | None = None,
        parts_ND: Integer[np.ndarray, "N D"] | None = None,
        *,
        grouped: bool = False,
    ) -> None:
        if len(tokens_ND) == 0:
            raise ValueError("a source of batches needs at least one sequence, found none")
        self.tokens_ND = tokens_ND
        self.given_N, self.parts_ND = given_N, parts_ND  # see `Batch`
        self.seed, self.grouped = seed, grouped  # sequences of like width together
        self._orders: dict[int, Int[np.ndarray, " N"]] = {}

    def __len__(self) -> int:
        return len(self.tokens_ND)

    @property
    def identity(self) -> str:
        """The number of sequences and a hash of them."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        digest = hashlib.sha256(str(self.tokens_ND.shape).encode())
        for start in range(0, len(self), _ROWS_AT_ONCE):
            rows_nD = self.tokens_ND[start : start + _ROWS_AT_ONCE]
            digest.update(np.ascontiguousarray(rows_nD, dtype="<u4").data)  # the same for any type that holds them
        for more in (self.given_N, self.parts_ND):
            if more is not None:
                digest.update(np.ascontiguousarray(more, dtype="<u4").data)
        return f"{len(self)} sequences ({digest.hexdigest()[:12]})"

    def ordered(self, seed: int) -> "PackedSource":
        """The same in the order of another seed."""
        return PackedSource(self.tokens_ND, seed, self.given_N, self.parts_ND, grouped=self.grouped)

    def _order(self, epoch: int) -> Int[np.ndarray, " N"]:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if abs(e - epoch) == 1}
            order_N = permutation(len(self), self.seed, epoch)
            if self.grouped:
                assert self.parts_ND is not None
                width_N = (self.parts_ND > 0).sum(1)
                like = LikeWidths(lambda _, place: order_N[place], lambda row: width_N[row], len(self), self.seed)
                order_N = like(epoch, np.arange(len(self)))
            self._orders[epoch] = order_N
        return self._orders[epoch]

    def read(self, start: int, count: int) -> Batch:
        """`count` sequences from position `start` on."""
        sample_id_B, epoch_B = in_epochs(start, count, len(self), lambda epoch, index_B: self._order(epoch)[index_B])
        batch = make_batch(np.asarray(self.tokens_ND[sample_id_B]), sample_id_B, epoch_B)
        given_B = None if self.given_N is None else torch.from_numpy(self.given_N[sample_id_B])
        parts_BD = None
        if self.parts_ND is not None:
            parts_BD = torch.from_numpy(self.parts_ND[sample_id_B].astype(np.int64))
        return cut(dataclasses.replace(batch, given=given_B, parts=parts_BD))


# What a rank trains on


@final
class BatchStream:
    """One rank's share of a run's batches: each `next` is one micro-batch.

    A global batch is the next G = micro_batch_size * gradient_accumulation * world_size positions. Its micro-step j
    gives rank r the positions j * (micro_batch_size * world_size) + r * micro_batch_size + (0, ..., micro_batch_size
    - 1) of it, so that the sequences of a global batch, and of each optimiser step, are the same for any number of
    ranks with the same G. With `stratified` each of its G sequences has one of G strata, and neighbours have distant ones.

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
        stratified: bool = False,
    ) -> None:
        assert 0 <= rank < world_size and micro_batch_size >= 1 and gradient_accumulation >= 1
        self._source = None if isinstance(source, Stream) else source
        self.micro_batch_size = micro_batch_size
        self.gradient_accumulation = gradient_accumulation
        self.rank = rank
        self.world_size = world_size
        self._consumed = 0
        self._micro_step = 0
        self._share = source.of_rank(rank, world_size) if isinstance(source, Stream) else None
        self._mark = self._share.mark() if self._share else None
        self._stride = _stride(self.global_batch_size) if stratified else None

    @property
    def global_batch_size(self) -> int:
        """G, sequences an optimiser step, over all ranks."""
        return self.micro_batch_size * self.gradient_accumulation * self.world_size

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> Batch:
        """The next micro-batch of this rank. The line of positions has no end."""
        first = (self._micro_step * self.world_size + self.rank) * self.micro_batch_size
        if self._share is not None:
            batch = self._share.take(self.micro_batch_size)
        else:
            assert self._source is not None
            batch = self._source.read(self._consumed + first, self.micro_batch_size)
        if self._stride is not None:
            stratum_B = torch.arange(first, first + len(batch.x)) * self._stride % self.global_batch_size
            batch = dataclasses.replace(batch, stratum=stratum_B, num_strata=self.global_batch_size)
        self._micro_step += 1
        if self._micro_step == self.gradient_accumulation:
            self._consumed += self.global_batch_size
            self._micro_step = 0
            self._mark = self._share.mark() if self._share else None
        return batch

    def state_dict(self) -> dict[str, Any]:
        """{"samples": sequences used up by all ranks in finished global batches} and the source's identity, or the stream's place."""
        if self._share is not None:
            return {"samples": self._consumed, "stream": self._share.state_of(self._mark)}
        assert self._source is not None
        return {"samples": self._consumed, "corpus": self._source.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the start of the global batch after the last finished one.

        Raises `ValueError` for the state of another corpus, or of a stream where this is none, or the other way round.
        """
        place = "stream" if self._share is not None else "corpus"
        if set(state) != {"samples", place} or not isinstance(state["samples"], int) or state["samples"] < 0:
            raise ValueError(
                f"a data state must hold 'samples', a number of at least 0, and {place!r}, got the keys {sorted(state)}, "
                f"samples={state.get('samples')}: resume with the data.kind and data.streaming that the run began with"
            )
        if self._share is not None:
            self._share.load(state["stream"])
            self._mark = self._share.mark()
        elif state["corpus"] != (here := self.state_dict()["corpus"]):
            raise ValueError(
                f"the run was saved with a corpus of {state['corpus']} and cannot resume with one of {here}: "
                "its sequences would be lost or seen twice. Resume with the same corpus"
            )
        self._consumed = state["samples"]
        self._micro_step = 0


def _stride(size: int) -> int:
    """A step that visits all of 0..size-1 and puts neighbours far apart: near the golden section, prime to `size`."""
    near_golden = round(size * (math.sqrt(5) - 1) / 2)
    return next(step for step in range(max(1, near_golden), size + 2) if math.gcd(step, size) == 1)


def first_sequences(source: Source | Stream, length: int, num_tokens: int = 4_000_000) -> Int64[Tensor, "N D"]:
    """Sequences of `length` from the beginning of a source: `num_tokens` tokens or one epoch, whichever is less."""
    count = max(1, num_tokens // length)
    if isinstance(source, Stream):
        return source.of_rank(0, 1).take(count).x
    return source.read(0, min(count, len(source))).x
