"""Which part of the float32 master weights lives on this rank.

DeepSpeed keeps the masters as flat tensors, cut between ranks at places that belong to no parameter. A `Partition` names the pieces, so
that the EMA and the checkpoints need not know how: any state laid out like the masters can be saved by parameter name, read back by
another number of ranks or another ZeRO stage, and gathered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from di4c_lm.training.distributed import is_main, sum_over_ranks

Flats = list[Tensor]  # one 1-d tensor for each flat master tensor of this rank, of the same size


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Elements [start, start + numel) of parameter `name` are elements [offset, offset + numel) of flat tensor number `flat`."""

    name: str
    start: int
    numel: int
    flat: int
    offset: int

    def of(self, flats: Flats) -> Tensor:
        """This piece as a view into `flats`."""
        return flats[self.flat].narrow(0, self.offset, self.numel)


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The masters of this rank (`flats`, views), their `pieces`, and the `shapes` of all trained parameters by name.

    `replicated`: every rank holds everything (ZeRO stage 0 in float32).
    """

    flats: Flats
    pieces: list[Piece]
    shapes: Mapping[str, tuple[int, ...]]
    replicated: bool

    def named(self, flats: Flats) -> Iterator[tuple[Piece, Tensor]]:
        """The pieces of `flats`, a state laid out like the masters."""
        return ((piece, piece.of(flats)) for piece in self.pieces)

    def gather(self, flats: Flats) -> dict[str, Tensor]:
        """Every parameter of `flats`, whole, in float32 on the CPU of rank 0; empty on the other ranks. All ranks must call it."""
        pieces: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            pieces.setdefault(piece.name, []).append(piece)
        device = flats[0].device if flats else torch.device("cpu")
        whole: dict[str, Tensor] = {}
        for name, shape in self.shapes.items():
            value = torch.zeros(torch.Size(shape).numel(), dtype=torch.float32, device=device)
            for piece in pieces.get(name, []):
                value[piece.start : piece.start + piece.numel] = piece.of(flats)
            if not self.replicated:
                value = sum_over_ranks(value)
            if is_main():
                whole[name] = value.reshape(shape).cpu()
        return whole
