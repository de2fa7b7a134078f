"""Sequences with noise that was made once, and with what a frozen network said of them: its features at the masked positions.

They are a folder of shards. A row holds x_0, how much of it is given where some is, x_t, and a tail: t and s (float64), and where the
features of its masked positions begin in the file beside the shard, and how many there are (int64). That file holds (M, H) features,
float32, or bfloat16 as uint16.
"""

import dataclasses
import functools
from typing import Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Integer
from torch import Tensor

from di4c_lm.data.batches import Batch, Noised, cut, in_epochs
from di4c_lm.data.records.shards import Shards, ShardSource

FEATURES = "features"  # what the files are called
DTYPE, WIDTH, TIMES = "features_dtype", "features_width", "times"  # among an index's facts
Precision = Literal["float32", "bfloat16"]
_STORED: dict[str, tuple[str, torch.dtype]] = {"float32": ("<f4", torch.float32), "bfloat16": ("<u2", torch.bfloat16)}
_TAIL_BYTES = 4 * 8


def tail_of(length: int, dtype: str) -> int:
    """Numbers of type `dtype` a row behind x_0 and what is given of it."""
    return length + _TAIL_BYTES // np.dtype(dtype).itemsize


def rows_of(
    batch: Batch, noised: Noised, count: Int64[Tensor, " B"], first: int, length: int, dtype: str
) -> Integer[np.ndarray, "B W"]:
    """The rows of sequences that have `count` features each, the first of them at place `first` of the file beside."""
    start_B = first + count.cumsum(0) - count
    tail = [noised.t.numpy(), noised.s.numpy(), *(one.double().numpy() for one in (start_B, count))]
    given = [] if batch.given is None else [batch.given[:, None]]
    given += [] if batch.parts is None else [batch.parts]
    whole = [batch.x, *given, noised.x_t]
    tail_B4 = np.stack(tail, 1).astype("<f8")  # whole numbers below 2^53 are exact
    # A batch of rows with parts may be narrower than they are: padding, which no one reads, is made of zeros again.
    wide = [F.pad(one, (0, (length if one.shape[1] > 1 else 1) - one.shape[1])) for one in whole]
    return np.concatenate([*(one.numpy().astype(dtype) for one in wide), tail_B4.view(dtype)], 1)


def stored(features: Float[Tensor, "M H"], precision: Precision) -> np.ndarray:
    """Features as the file beside a shard holds them."""
    narrow = features.to(_STORED[precision][1]).contiguous()
    return narrow.numpy() if precision == "float32" else narrow.view(torch.int16).numpy().view("<u2")


@final
class FeatureSource:
    """The sequences of such a folder for a `BatchStream`, each with its x_t, times and features; in the order of a `ShardSource`.

    `sample_id` is the row's number among all that were written.
    """

    def __init__(self, shards: Shards, seed: int) -> None:
        self.shards, self.seed = shards, seed
        facts = shards.index.facts
        stored_as, self._dtype = _STORED[facts[DTYPE]]
        width = facts[WIDTH]
        self._values = [
            np.memmap(path, np.dtype(stored_as), "r", shape=(shard.rows, width)) if shard.rows else None
            for path, shard in shards.beside
        ]
        self._nothing = torch.zeros(0, width, dtype=self._dtype)

    def ordered(self, seed: int) -> "FeatureSource":
        """The same in the order of another seed."""
        return FeatureSource(self.shards, seed)

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def identity(self) -> str:
        """See `Shards.identity`."""
        return self.shards.identity

    @functools.cached_property
    def tokens(self) -> ShardSource:
        """The clean sequences alone, in the same order."""
        return ShardSource(self.shards, self.seed)

    def read(self, start: int, count: int) -> Batch:
        """`count` sequences from position `start` on."""
        row_B, epoch_B = in_epochs(start, count, len(self), self.tokens.rows_at)
        cells_BW, index, length = self.shards[row_B], self.shards.index, self.shards.index.length
        tail_BK = cells_BW[:, index.width - index.tail :]
        x_t = torch.from_numpy(tail_BK[:, :length].astype(np.int64))
        numbers_B4 = np.ascontiguousarray(tail_BK[:, length:]).view("<f8")
        t_B, s_B = (torch.from_numpy(one.copy()) for one in numbers_B4[:, :2].T)
        parts = [
            self._of(*one) for one in zip(row_B.tolist(), *numbers_B4[:, 2:].astype(np.int64).T.tolist(), strict=True)
        ]
        noised = Noised(x_t, t_B, s_B, torch.cat([self._nothing, *parts]))
        return cut(dataclasses.replace(index.batch(cells_BW, self.shards.ids(row_B), epoch_B), noised=noised))

    def _of(self, row: int, first: int, count: int) -> Float[Tensor, "m H"]:
        """The features of one row."""
        values = self._values[self.shards.number_of(row)]
        if not count or values is None:
            return self._nothing
        block = np.array(values[first : first + count])
        return torch.from_numpy(block.view(np.int16) if block.dtype.kind == "u" else block).view(self._dtype)
