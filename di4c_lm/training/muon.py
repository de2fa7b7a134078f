"""Muon (Jordan et al. 2024) on matrices that ranks share: momentum, its direction orthogonalised as a whole matrix, decay by the rate."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from di4c_lm.training.distributed import gather_objects, rank, sum_over_ranks, world_size
from di4c_lm.training.partition import Partition

_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that each iteration applies to the singular values


def orthogonalise(matrices: Float[Tensor, "N R C"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "N R C"]:
    """About U Vᵀ of each matrix U S Vᵀ: singular values between 0.7 and 1.2, by five Newton-Schulz iterations (Jordan et al. 2024, Muon).

    By products in `dtype`; on a GPU in bfloat16, as published. A matrix of zeros stays one.
    """
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else dtype)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


def direction(grad: Tensor, average: Tensor, momentum: float) -> Tensor:
    """Nesterov's: `average` is moved on by the gradient, which is then moved on towards it."""
    average.lerp_(grad, 1 - momentum)
    return grad.lerp(average, momentum)


class LocalMuon(torch.optim.Optimizer):
    """Muon on matrices that one process holds whole, (inputs, outputs) as in GPT-2's linear maps: for small networks beside a run's."""

    def __init__(
        self, matrices: Sequence[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of all matrices, those of one shape orthogonalised together. `closure` must be None."""
        assert closure is None
        for group in self.param_groups:
            of_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                of_shape.setdefault(p.shape, []).append(p)
            for matrices in of_shape.values():
                directions = []
                for p in matrices:
                    assert p.grad is not None
                    average = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                    directions.append(direction(p.grad, average, group["momentum"]))
                for p, update in zip(matrices, orthogonalise(torch.stack(directions)), strict=True):
                    inputs, outputs = p.shape
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-group["lr"] * max(1.0, outputs / inputs) ** 0.5)


class Muon:
    """Updates of the masters that `partition` describes, the same at every ZeRO stage and on any number of ranks, up to rounding.

    Of a matrix that ranks share, the pieces are put together, each rank orthogonalises some of the matrices, and each takes its pieces of
    all. The momentum is `exp_avg` of the optimiser's state. `dtype`: see `orthogonalise`. All ranks must make it, and call it alike.
    """

    def __init__(
        self, masters: Sequence[Tensor], partition: Partition, *, momentum: float, dtype: torch.dtype = torch.float32
    ) -> None:
        self._partition = partition
        self._momentum = momentum
        self._dtype = dtype
        self._flat_of = {id(master): i for i, master in enumerate(masters)}
        held = set().union(*gather_objects({(piece.flat, piece.name) for piece in partition.pieces}))
        self.names_of = [[name for name in partition.shapes if (i, name) in held] for i in range(len(masters))]

    def update(self, group: dict[str, Any], state: Any) -> None:
        """One update of a parameter group, all of whose parameters have gradients; `state` is the optimiser's, by parameter."""
        partition, momentum, lr = self._partition, self._momentum, group["lr"]
        masters = {self._flat_of[id(p)]: p for p in group["params"]}
        directions = [torch.empty(0) for _ in partition.flats]
        for i, p in masters.items():
            grad, average = p.grad.to(p.dtype), state[p]["exp_avg"]
            directions[i] = direction(grad, average, momentum).view(-1)
            p.mul_(1 - lr * group["weight_decay"])
            state[p]["step"] += 1
        names = [name for i in masters for name in self.names_of[i]]
        own: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for i, name in enumerate(names):
            whole = partition.assemble(directions, name)
            if i % world_size() == rank():
                own.setdefault(partition.shapes[name], {})[name] = whole
        made: dict[str, Tensor] = {}
        for of_shape in own.values():
            made |= zip(of_shape, orthogonalise(torch.stack(list(of_shape.values())), self._dtype), strict=True)
        for name in names:
            rows, columns = partition.shapes[name]
            update = made[name] if name in made else partition.flats[0].new_zeros(rows, columns)
            update = sum_over_ranks(update).flatten()
            for piece in partition.pieces_of.get(name, ()):
                change = update[piece.start : piece.start + piece.numel]
                piece.of(partition.flats).add_(change, alpha=-lr * max(1.0, rows / columns) ** 0.5)
