"""SDTT's objective on small networks: its times, its targets, and what they depend on."""

from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.data.batches import Batch, BatchStream, PackedSource
from di4c_lm.data.strata import StratifiedBatches
from di4c_lm.losses.positions import Positions
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.mdlm import MdlmObjective
from di4c_lm.objectives.sdtt import SdttObjective, teacher_steps
from di4c_lm.objectives.settings import SdttConfig
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng

S, D = 7, 6
MODEL = DitConfig(hidden_size=16, num_blocks=1, num_heads=2, cond_dim=8)


def network(seed: int, *, time_conditioning: bool = False) -> DIT:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DitConfig(**{**vars(MODEL), "time_conditioning": time_conditioning})
        net = DIT(model, num_states=S)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return net.double()


def batch(*sample_ids: int) -> Batch:
    ids = torch.tensor(sample_ids)
    x = torch.stack([(torch.arange(D) * (i + 3)) % (S - 1) for i in sample_ids])
    return Batch(x=x, sample_id=ids, epoch=torch.zeros_like(ids))


def objective(student: int = 1, teacher: int = 2, **settings: Any) -> SdttObjective:
    config = SdttConfig(**{"dt": 0.125, **settings})
    return SdttObjective(network(student), network(teacher), MaskedProcess(S - 1), config, seed=3)


def test_exact_steps_follow_each_other_and_stay_above_zero() -> None:
    t = torch.tensor([0.9, 0.5, 0.1, 1.0]).double()
    steps = teacher_steps(SdttConfig(dt=0.0625, round=2, teacher_steps=3), t)
    h = torch.tensor([0.125, 0.125, 0.1 / 3, 0.125]).double()
    for k, (start, end) in enumerate(steps):
        torch.testing.assert_close(start, t - k * h)
        torch.testing.assert_close(end, t - (k + 1) * h)
        assert (end >= -1e-12).all()


def test_legacy_steps_are_the_published_mis_interpolation() -> None:
    t = torch.tensor([0.9, 0.5, 0.1]).double()
    (start, end), (second, _) = teacher_steps(SdttConfig(dt=1 / 1024, time_grid="legacy"), t)
    # reference values: at t = 0.9 the teacher is asked at 0.9898 and 0.0898, not at 0.9 and 0.899
    assert start[0] == pytest.approx(0.9898, abs=1e-4)
    assert second[0] == pytest.approx(0.0898, abs=1e-4)
    exact_share, legacy_share = 1 / 1024 / t, 1 - end / start
    torch.testing.assert_close(
        legacy_share / exact_share, torch.tensor([0.91, 0.67, 0.53]).double(), atol=0.005, rtol=0
    )


def test_the_loss_of_a_batch_is_the_mean_of_its_examples_alone() -> None:
    of = objective(teacher_steps=3)
    whole, _ = of(batch(0, 5, 9, 11))
    parts = torch.stack([of(batch(i))[0] for i in (11, 0, 9, 5)])
    torch.testing.assert_close(whole, parts.mean())


@pytest.mark.parametrize("divergence", ["kl_backward", "kl_forward", "mse", "tv"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_one_step(divergence: str) -> None:
    of = objective(student=2, divergence=divergence, teacher_steps=1)
    loss, metrics = of(batch(0, 1, 2))
    assert loss.abs() < 1e-9
    assert metrics["divergence_per_token"].abs() < 1e-9
    assert objective(student=2, divergence=divergence)(batch(0, 1, 2))[0] > 1e-6, "two steps see more than one"


def test_targets_are_of_the_step_that_reveals_and_of_the_last_where_none_does() -> None:
    of = objective(teacher_steps=2, dt=0.5)
    x_t = torch.full((40, D), S - 1)
    t = torch.ones(40).double()
    positions = Positions.where(x_t == S - 1)
    target_BDS = of.targets(x_t, positions, t, KeyedRng(0, torch.arange(40))).view(40, D, S)
    with torch.no_grad():
        first_BDS = of.teacher(x_t, t.float()).log_probs()[:, 0]
    of_first_BD = (target_BDS - first_BDS).abs().amax(2) < 1e-9
    assert of_first_BD.double().mean() == pytest.approx(0.5, abs=0.1), "a step from 1 to 1/2 reveals half"
    assert (target_BDS.exp().sum(2) - 1).abs().max() < 1e-9
    # Where the second step speaks, it has read what the first revealed: it differs between sequences.
    assert len(target_BDS[~of_first_BD].round(decimals=6).unique(dim=0)) > len(first_BDS[0].unique(dim=0))


def test_gradients_reach_the_student_alone() -> None:
    of = objective()
    of(batch(0, 1))[0].backward()
    assert all(name.startswith("student.") for name, _ in of.named_parameters())
    assert of.student.output_layer.linear.weight.grad.abs().sum() > 0  # pyright: ignore
    assert all(p.grad is None for p in of._teacher[0].parameters())


def stream(rank: int, world: int, micro: int, accumulation: int) -> StratifiedBatches:
    source = PackedSource(torch.arange(48 * D).view(48, D).remainder(S - 1).numpy(), seed=0)
    return StratifiedBatches(
        BatchStream(source, micro_batch_size=micro, gradient_accumulation=accumulation, rank=rank, world_size=world)
    )


@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 12, 1), (2, 3, 2), (3, 1, 4)])
def test_antithetic_times_cover_the_global_batch_for_any_number_of_ranks(
    world: int, micro: int, accumulation: int
) -> None:
    streams = [stream(rank, world, micro, accumulation) for rank in range(world)]
    for _ in range(2):
        found = [next(of_rank) for _ in range(accumulation) for of_rank in streams]
        strata = torch.cat([one.stratum for one in found])
        assert sorted(strata.tolist()) == list(range(12))
        t = torch.cat([one.spread(torch.full((micro,), 0.5).double()) for one in found])
        torch.testing.assert_close(t.sort().values, (torch.arange(12).double() + 0.5) / 12)
        whole = next(iter([stream(0, 1, 12, 1)]))
        assert torch.equal(next(whole).stratum, strata), "the stratum of a slot depends on the slot alone"


def test_a_resumed_stream_has_the_strata_of_the_one_it_goes_on_from() -> None:
    whole, resumed = stream(0, 1, 4, 3), stream(0, 1, 4, 3)
    for _ in range(4):
        next(whole)
    resumed.load_state_dict(whole.state_dict())
    next(resumed)
    for _ in range(4):
        a, b = next(whole), next(resumed)
        assert torch.equal(a.stratum, b.stratum)
        assert torch.equal(a.sample_id, b.sample_id)


def test_antithetic_times_estimate_the_same_bound() -> None:
    of = MdlmObjective(network(1), MaskedProcess(S - 1), seed=0)
    slotted, plain = stream(0, 1, 12, 1), stream(0, 1, 12, 1)

    def losses(*, stratified: bool) -> Tensor:
        found = []
        for _ in range(40):
            one = next(slotted if stratified else plain)
            given = one if stratified else Batch(x=one.x, sample_id=one.sample_id, epoch=one.epoch)
            found.append(of(given)[0].detach())
        return torch.stack(found)

    antithetic, independent = losses(stratified=True), losses(stratified=False)
    spread = (antithetic.var() / 40 + independent.var() / 40).sqrt()
    assert (antithetic.mean() - independent.mean()).abs() < 4 * spread
