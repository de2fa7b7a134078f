"""The optimiser that the engine hands to DeepSpeed: AdamW, and Muon for the matrices of a network's blocks where a run asks for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.training.distributed import gather_objects, rank, sum_over_ranks, world_size
from di4c_lm.training.partition import Partition
from di4c_lm.training.settings import OptimConfig

_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the odd polynomial that each iteration applies to the singular values


def parameter_groups(
    trained: Mapping[str, nn.Parameter],
    optim: OptimConfig,
    *,
    is_latent: Callable[[str], bool],
    is_matrix: Callable[[str], bool],
) -> list[dict[str, Any]]:
    """Groups of one rate each: the parameters of λ learn at a rate of their own, and so do the matrices that Muon updates.

    Raises `ValueError` where Muon is asked for and has no matrix to update.
    """
    wants_muon = optim.kind == "muon"
    groups: dict[tuple[bool, float], dict[str, nn.Parameter]] = {}
    for name, p in trained.items():
        muon = wants_muon and p.ndim == 2 and is_matrix(name)
        groups.setdefault((muon, optim.mixture_lr_scale if is_latent(name) else 1.0), {})[name] = p
    if wants_muon and not any(muon for muon, _ in groups):
        raise ValueError("optim must be adamw where no matrix of a transformer block is trained, got 'muon'")
    return [
        {
            "params": list(named.values()),
            "names": list(named),
            "muon": muon,
            "lr": optim.lr,
            "lr_scale": scale * (optim.muon_lr / optim.lr if muon else 1.0),
        }
        for (muon, scale), named in sorted(groups.items(), key=lambda item: item[0])
    ]


def orthogonalise(matrices: Float[Tensor, "N R C"]) -> Float[Tensor, "N R C"]:
    """About U Vᵀ of each matrix U S Vᵀ: singular values between 0.7 and 1.2, by five Newton-Schulz iterations (Jordan et al. 2024, Muon).

    In bfloat16 on a GPU, as published; in float32 elsewhere. A matrix of zeros stays one.
    """
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7)[:, None, None]
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


@final
class Optimizer(torch.optim.AdamW):
    """AdamW; for groups with `muon` Muon (Jordan et al. 2024): momentum, its direction orthogonalised as a whole matrix, decay by rate.

    DeepSpeed hands it flat pieces of the parameters. Of a matrix that ranks share, the pieces are put together, each rank orthogonalises
    some of the matrices, and each takes its pieces of all; so the update is the same at every ZeRO stage. The momentum is `exp_avg`.
    With `clip_norm` it clips by global norm and skips what is not finite, as DeepSpeed's own wrappers do at the other stages; DeepSpeed
    reads `overflow` and `_global_grad_norm` from whatever stands as its optimizer. Before `bind` a step does nothing.
    """

    def __init__(
        self, groups: list[dict[str, Any]], *, clip_norm: float | None, momentum: float, **options: Any
    ) -> None:
        super().__init__(groups, **options)
        self._clip_norm = clip_norm
        self._momentum = momentum
        self._global_grad_norm = 0.0
        self.overflow = False
        self._partition: Partition | None = None
        self._flat_of: dict[int, int] = {}
        self._names_of: list[list[str]] = []

    def bind(self, masters: Sequence[Tensor], partition: Partition) -> None:
        """Begin with empty moments for `masters`, which lie as `partition` says. All ranks must call it."""
        self._partition = partition
        self._flat_of = {id(master): i for i, master in enumerate(masters)}
        held = gather_objects({(piece.flat, piece.name) for piece in partition.pieces})
        everywhere = set().union(*held)
        self._names_of = [[name for name in partition.shapes if (i, name) in everywhere] for i in range(len(masters))]
        by_muon = {name for group in self.param_groups if group["muon"] for name in group["names"]}
        for master, names in zip(masters, self._names_of, strict=True):
            keys = ("exp_avg", "exp_avg_sq") if by_muon.isdisjoint(names) else ("exp_avg",)
            self.state[master].update({key: torch.zeros_like(master.detach()) for key in keys})
            self.state[master]["step"] = torch.zeros((), dtype=torch.float32, device=master.device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update, or none where it clips and the gradient is not finite."""
        if self._partition is None or not self._clip():
            return
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._muon(group, self._partition)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups

    def _clip(self) -> bool:
        """Whether the gradient is finite; True as well where others have seen to it."""
        if self._clip_norm is None:
            return True
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.overflow = not bool(norm.isfinite())
        self._global_grad_norm = float("inf") if self.overflow else norm.item()
        if not self.overflow:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, norm)
        return not self.overflow

    def _muon(self, group: dict[str, Any], partition: Partition) -> None:
        flats = {self._flat_of[id(p)]: p for p in group["params"]}
        directions = [torch.empty(0) for _ in partition.flats]
        for i, p in flats.items():
            assert p.grad is not None
            momentum, grad = self.state[p]["exp_avg"], p.grad.to(p.dtype)
            momentum.lerp_(grad, 1 - self._momentum)
            directions[i] = grad.lerp(momentum, self._momentum).view(-1)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            self.state[p]["step"] += 1
        names = [name for i in flats for name in self._names_of[i]]
        own: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for i, name in enumerate(names):
            whole = partition.assemble(directions, name)
            if i % world_size() == rank():
                own.setdefault(partition.shapes[name], {})[name] = whole
        updates = {
            name: update
            for shape, of_shape in own.items()
            for name, update in zip(of_shape, orthogonalise(torch.stack(list(of_shape.values()))), strict=True)
        }
        for name in names:
            rows, columns = partition.shapes[name]
            update = updates.get(name)
            if update is None:
                update = partition.flats[0].new_zeros(rows, columns)
            update = sum_over_ranks(update).flatten()
            for piece in partition.pieces:
                if piece.name == name:
                    change = update[piece.start : piece.start + piece.numel]
                    piece.of(partition.flats).add_(change, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)
