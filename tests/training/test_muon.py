"""Muon by itself: its iterations against the singular value decomposition and against PyTorch's own Muon."""

import pytest
import torch

from di4c_lm.training.distributed import World
from di4c_lm.training.engine import Engine, Optimizer, parameter_groups
from di4c_lm.training.muon import orthogonalise
from di4c_lm.training.partition import Partition, Piece
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    (made,) = orthogonalise(matrix[None])
    of_vectors = u.T @ made @ v.T
    found = of_vectors.diagonal()
    assert bool(((found > 0.6) & (found < 1.3)).all()) and float(s.max() / s.min()) > 1.5
    assert float((of_vectors - found.diag()).abs().max()) < 1e-4


def test_products_in_bfloat16_are_near_those_in_float32() -> None:
    matrix = torch.randn(2, 24, 40, generator=torch.Generator().manual_seed(3))
    exact, narrow = orthogonalise(matrix), orthogonalise(matrix, torch.bfloat16)
    error = float((narrow - exact).norm() / exact.norm())
    assert narrow.dtype == torch.float32 and 1e-4 < error < 0.03


def test_a_stack_is_its_matrices_and_nothing_stays_nothing() -> None:
    matrices = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1))
    matrices[1] = 0
    together = orthogonalise(matrices)
    for one, made in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonalise(one[None])[0], made)
    assert not together[1].any()


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_updates_are_those_of_pytorch_to_bfloat16(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    begin = torch.randn(shape, generator=generator)
    theirs, ours = torch.nn.Parameter(begin.clone()), torch.nn.Parameter(begin.clone())
    muon = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1)
    optim = OptimConfig(kind="muon", muon_lr=0.02, muon_momentum=0.9, weight_decay=0.1)
    groups = parameter_groups({"w": ours}, optim, is_latent=lambda name: False, matrices={"w"})
    optimizer = Optimizer(groups, clip_norm=None, momentum=0.9, weight_decay=0.1)
    piece = Piece(name="w", start=0, numel=ours.numel(), flat=0, offset=0)
    optimizer.bind(
        [ours], Partition(flats=[ours.detach().view(-1)], pieces=[piece], shapes={"w": shape}, replicated=True)
    )
    optimizer.param_groups[0]["lr"] = 0.02
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        theirs.grad, ours.grad = gradient.clone(), gradient.clone()
        muon.step()
        optimizer.step()
    moved = (theirs - begin).norm()
    assert float((theirs - ours).norm() / moved) < 0.02


def test_before_it_is_bound_a_step_changes_nothing() -> None:
    p = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer(
        [{"params": [p], "names": ["w"], "lr": 1.0, "muon": False}], clip_norm=None, momentum=0.9, weight_decay=0.5
    )
    p.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2, 2))


def test_muon_without_a_matrix_to_update_is_refused() -> None:
    objective = torch.nn.Module()
    objective.student = torch.nn.Linear(2, 2)
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    with pytest.raises(
        ValueError, match="optim must be adamw where no matrix of a transformer block is trained, got 'muon'"
    ):
        Engine(objective, train=TrainConfig(), optim=OptimConfig(kind="muon"), zero=ZeroConfig(), world=world)
