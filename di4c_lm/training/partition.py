"""Which part of the float32 master weights lives on this rank.

DeepSpeed keeps the masters as flat tensors, cut between ranks at places that belong to no parameter. A `Partition` names the pieces, so
that the EMA and the checkpoints need not know how: any state laid out like the masters can be saved by parameter name, read back by
another number of ranks or another ZeRO stage, and gathered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def pieces_of(self) -> dict[str, list[Piece]]:
        """This rank's pieces of each parameter that it holds any of."""
        found: dict[str, list[Piece]] = {}
        for piece in self.pieces:
            found.setdefault(piece.name, []).append(piece)
        return found

    def named(self, flats: Flats) -> Iterator[tuple[Piece, Tensor]]:
        """The pieces of `flats`, a state laid out like the masters; a flat tensor that the state lacks is empty."""
        return ((piece, piece.of(flats)) for piece in self.pieces if flats[piece.flat].numel())

    def assemble(self, flats: Flats, name: str) -> Tensor:
        """Parameter `name` of `flats`, whole, in float32 on every rank. All ranks must call it."""
        shape = torch.Size(self.shapes[name])
        device = self.flats[0].device if self.flats else torch.device("cpu")
        value = torch.zeros(shape.numel(), dtype=torch.float32, device=device)
        for piece in self.pieces_of.get(name, ()):
            value[piece.start : piece.start + piece.numel] = piece.of(flats)
        return (value if self.replicated else sum_over_ranks(value)).view(shape)

    def gather(self, flats: Flats) -> dict[str, Tensor]:
        """Every parameter of `flats`, whole, in float32 on the CPU of rank 0; empty on the other ranks. All ranks must call it."""
        whole: dict[str, Tensor] = {}
        for name in self.shapes:
            value = self.assemble(flats, name)
            if is_main():
                whole[name] = value.cpu()
        return whole
