"""Sequences packed on the fly, each rank from its own share of the documents, mixed in a buffer, and resumed without going back."""

import base64
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, final

import numpy as np
from jaxtyping import Integer

from di4c_lm.data.batches import Batch, make_batch, random_index
from di4c_lm.data.text.packing import Cursor, Rows, Run, prefetched


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamingSource:
    """A corpus that is tokenised and packed as it is read.

    `open_runs(cursor, rank, world_size)` gives the runs of a rank's documents from a cursor on, to the end of the corpus. Each rank
    mixes the sequences of its documents in a buffer of `shuffle_buffer`; which one the buffer gives away next is a function of (seed,
    epoch, sample id) alone. A rank that comes to the end of its documents begins its next epoch. `sample_id` counts a rank's
    sequences in the corpus' order, times the number of ranks, plus the rank.
    """

    open_runs: Callable[[Cursor, int, int], Iterator[Run]]
    length: int
    frame: tuple[int, int] | None = None
    shuffle_buffer: int
    seed: int
    name: str
    identity: str = ""
    as_batch: Callable[..., Batch] = make_batch  # of rows of `length` numbers, sample ids and epochs

    def of_rank(self, rank: int, world_size: int) -> "RankStream":
        """The endless series of a rank's sequences."""
        return RankStream(self, rank, world_size)


@dataclasses.dataclass(kw_only=True)
class Mark:
    """Where a `RankStream` stands."""

    epoch: int = 0
    cursor: Cursor = Cursor()
    ended: bool = False  # the epoch's documents are used up, the buffer perhaps not
    rest_N: Integer[np.ndarray, " N"] = dataclasses.field(default_factory=lambda: np.empty(0, np.uint16))
    pending_ND: Integer[np.ndarray, "n D"] = dataclasses.field(default_factory=lambda: np.empty((0, 0), np.uint16))
    numbered: int = 0  # sequences of the epoch that have entered the buffer
    buffer: list[tuple[int, Integer[np.ndarray, " D"]]] = dataclasses.field(default_factory=list)


@final
class RankStream:
    """One rank's sequences; see `StreamingSource`. Its state holds the tokens of the buffer, 2.7 bytes each in uint16."""

    def __init__(self, source: StreamingSource, rank: int, world_size: int) -> None:
        self._source, self._rank, self._world_size = source, rank, world_size
        self._runs: Iterator[Run] | None = None
        self._go_to(Mark())

    def _go_to(self, mark: Mark) -> None:
        runs, self._runs = self._runs, None
        close = getattr(runs, "close", None)
        if close is not None:
            close()
        self._now, self._rows = mark, Rows(self._source.length, self._source.frame, mark.rest_N)

    def mark(self) -> Mark:
        """Where the stream stands; made in no time, since arrays are shared."""
        return dataclasses.replace(self._now, rest_N=self._rows.rest_N, buffer=list(self._now.buffer))

    def _draw(self, number: int) -> int:
        key = number * self._world_size + self._rank
        return random_index(len(self._now.buffer), self._source.seed, self._now.epoch, key)

    def _enter(self) -> tuple[int, Integer[np.ndarray, " D"]] | None:
        """Move the next pending sequence into the buffer, and out of it one that gives way, once the buffer is full."""
        now = self._now
        sample = now.numbered * self._world_size + self._rank, now.pending_ND[0].copy()
        now.pending_ND = now.pending_ND[1:]
        now.numbered += 1
        if len(now.buffer) < self._source.shuffle_buffer:
            now.buffer.append(sample)
            return None
        slot = self._draw(now.numbered)
        given, now.buffer[slot] = now.buffer[slot], sample
        return given

    def _read_on(self) -> None:
        if self._runs is None:
            self._runs = prefetched(self._source.open_runs(self._now.cursor, self._rank, self._world_size))
        run = next(self._runs, None)
        if run is None:
            self._now.ended, self._runs = True, None
        else:
            self._now.pending_ND, self._now.cursor = self._rows.push(run.tokens_N), run.cursor

    def _next(self) -> tuple[int, int, Integer[np.ndarray, " D"]]:
        while True:
            now = self._now
            if len(now.pending_ND):
                given = self._enter()
                if given is not None:
                    return now.epoch, *given
            elif not now.ended:
                self._read_on()
            elif now.buffer:
                slot = self._draw(now.numbered + len(now.buffer))
                now.buffer[slot], now.buffer[-1] = now.buffer[-1], now.buffer[slot]
                return now.epoch, *now.buffer.pop()
            elif now.numbered == 0:
                share = f" in the share of rank {self._rank} of {self._world_size}" if self._world_size > 1 else ""
                raise ValueError(
                    f"{self._source.name}: fewer tokens than one sequence of data.length={self._source.length} were found{share}"
                )
            else:
                self._go_to(Mark(epoch=now.epoch + 1))

    def take(self, count: int) -> Batch:
        """The next `count` sequences. Raises `ValueError` where the rank's documents do not hold one, and as `open_runs`."""
        epochs, sample_ids, rows = zip(*(self._next() for _ in range(count)), strict=True)
        return self._source.as_batch(np.stack(rows), np.array(sample_ids), np.array(epochs))

    def state_of(self, mark: Mark) -> dict[str, Any]:
        """`mark` as plain JSON values."""
        ids = [sample_id for sample_id, _ in mark.buffer]
        buffer_ND = np.stack([row for _, row in mark.buffer]) if ids else mark.pending_ND[:0]
        return {
            "corpus": self._source.identity,
            "rank": self._rank,
            "world_size": self._world_size,
            "epoch": mark.epoch,
            "cursor": mark.cursor.state_dict(),
            "ended": mark.ended,
            "rest": _packed(mark.rest_N),
            "pending": _packed(mark.pending_ND),
            "numbered": mark.numbered,
            "ids": ids,
            "buffer": _packed(buffer_ND),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state_of`: nothing that has passed is read, tokenised or given again.

        Raises `ValueError` for the state of another corpus, length, rank or number of ranks.
        """
        source, length = self._source, self._source.length
        expected = {"corpus": source.identity, "rank": self._rank, "world_size": self._world_size}
        for key, here in expected.items():
            if state.get(key) != here:
                raise ValueError(
                    f"{source.name}: the stream was saved with {key}={state.get(key)!r} and cannot go on with {key}={here!r}: "
                    "data.streaming=true resumes with the same corpus, tokenizer, data.length and number of ranks "
                    "(prepared shards resume with any number)"
                )
        buffer_ND = _unpacked(state["buffer"]).reshape(-1, length)
        self._go_to(
            Mark(
                epoch=state["epoch"],
                cursor=Cursor.from_state(state["cursor"]),
                ended=state["ended"],
                rest_N=_unpacked(state["rest"]),
                pending_ND=_unpacked(state["pending"]).reshape(-1, length),
                numbered=state["numbered"],
                buffer=list(zip(state["ids"], buffer_ND, strict=True)),
            )
        )


def _packed(tokens: Integer[np.ndarray, "..."]) -> str:
    little = tokens.astype(tokens.dtype.newbyteorder("<"))
    return f"{little.dtype.str}:{base64.b64encode(little.tobytes()).decode()}"


def _unpacked(text: str) -> Integer[np.ndarray, " N"]:
    dtype, _, content = text.partition(":")
    return np.frombuffer(base64.b64decode(content), np.dtype(dtype)).astype(np.dtype(dtype).newbyteorder("="))
