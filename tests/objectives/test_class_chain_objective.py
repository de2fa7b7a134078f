"""The same Di4C objective on tauLDR's chain, and the cross-entropy that trains its teacher."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.checkpoints.unet import student_from_teacher
from di4c_lm.data.images.images import LabelledBatch
from di4c_lm.losses.positions import Positions
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.objectives.denoising import DenoisingObjective
from di4c_lm.objectives.di4c import Di4CObjective
from di4c_lm.objectives.settings import Di4CConfig, HopConfig, TimesConfig
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.rng import KeyedRng

S, D = 5, 4
MODEL = UnetConfig(width=4, multipliers=(1,), res_blocks=1, attention_scale=-1, dropout=0.0)
CHAIN = GaussianChain(num_states=S, rate_sigma=1.0, q_sigma=8.0, time_base=0.3, time_exponential=20.0)
PAPER: dict[str, Any] = {
    "distil_inputs": "own",
    "delta": 0.01,
    "alpha_scale": 1.0,
    "times": TimesConfig(law="above_hop"),
    "hop": HopConfig(law="log_uniform", low=0.001, high=0.01),
}


def network(latent: LatentConfig | None, seed: int) -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = UNet(MODEL, shape=(2, 2, 1), num_states=S, latent=latent)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return net.double()


def batch(*sample_ids: int) -> LabelledBatch:
    ids = torch.tensor(sample_ids)
    x = torch.stack([(torch.arange(D) * (i + 2)) % S for i in sample_ids])
    return LabelledBatch(x, ids, torch.zeros_like(ids), ids % 3)


def objective(**settings: Any) -> Di4CObjective:
    config = Di4CConfig(**{"num_lambdas": 3, **PAPER, **settings})
    return Di4CObjective(network(LatentConfig(), 1), network(None, 2), CHAIN, config, seed=3)


def gradients(of: Di4CObjective, given: LabelledBatch) -> dict[str, Tensor]:
    of.zero_grad()
    of(given)[0].backward()
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"distil_inputs": "shared", "delta": 0.4, "label_drop": 0.5},
        {"times": TimesConfig(), "hop": HopConfig(law="fraction", size=0.5, teacher_steps=2)},
    ],
    ids=["paper", "shared", "two steps"],
)
def test_a_batch_is_the_mean_of_its_examples(settings: dict[str, Any]) -> None:
    of, ids = objective(**settings), (0, 1, 2, 3)
    whole = gradients(of, batch(*ids))
    parts = [gradients(of, batch(i)) for i in ids]
    loss, metrics = of(batch(*ids))
    torch.testing.assert_close(loss, torch.stack([of(batch(i))[0] for i in ids]).mean())
    assert set(metrics) == {"distil", "consistency", "data_corr", "data_marginal"}
    assert len(whole) == len(list(of.parameters()))
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, sum(part[name] for part in parts) / len(ids), rtol=1e-6, atol=1e-9)


def test_a_student_that_begins_as_its_teacher_has_no_divergence_from_it() -> None:
    teacher = network(None, 2)
    student = student_from_teacher(teacher, LatentConfig(), torch.Generator().manual_seed(0))
    of = Di4CObjective(student, teacher, CHAIN, Di4CConfig(num_lambdas=3, **PAPER), seed=0)
    _, metrics = of(batch(*range(6)))
    for name in ("distil", "data_marginal", "data_corr"):
        assert abs(float(metrics[name])) < 1e-9, name


def test_the_distillation_term_has_inputs_of_its_own_at_every_time() -> None:
    """As published it is always on, near the lowest time; as for text it is on below δ alone."""
    low = {"times": TimesConfig(mass_at_one=1.0), "hop": HopConfig()}
    always, never = objective(**low), objective(distil_inputs="shared", **low)
    seen: list[Tensor] = []
    teacher = always.teacher.forward  # pyright: ignore

    def watch(x_t: Tensor, t: Tensor, *rest: Any) -> Any:
        seen.append(t)
        return teacher(x_t, t, *rest)

    always.teacher.forward = watch  # pyright: ignore
    assert float(always(batch(*range(40)))[1]["distil"]) > 0
    assert float(never(batch(*range(40)))[1]["distil"]) == 0
    own = seen[-1]
    assert len(own) == 40 * 3
    assert float(own.min()) == pytest.approx(CHAIN.min_time) and float(own.max()) <= CHAIN.min_time + 0.01
    assert 0.3 < float((own == own.min()).double().mean()) < 0.7


def test_x_u_follows_the_teachers_posterior() -> None:
    """Over many draws at one x_t: each position's law is the posterior of the teacher's."""
    of = objective(num_lambdas=1, consistency_samples=6000)
    x_t, t_B, u_B = torch.tensor([[0, 4, 2, 1]]), torch.tensor([0.6]).double(), torch.tensor([0.4]).double()
    positions = Positions.where(torch.ones_like(x_t, dtype=torch.bool))
    law_MS, x_u, _ = of._teacher_side(x_t, positions, t_B, KeyedRng(0, torch.arange(1)), u_B)
    expected_DS = CHAIN.posterior(x_t[0], law_MS, t_B[0], u_B[0])
    found_DS = torch.nn.functional.one_hot(x_u[0], S).double().mean(0)
    assert bool(((found_DS - expected_DS).abs() <= 5 * (expected_DS * (1 - expected_DS) / 6000).sqrt()).all())


def test_cross_entropy_is_least_at_the_true_marginals() -> None:
    """Of a network that knows nothing it is log S; training lowers it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(MODEL, shape=(2, 2, 1), num_states=S)
    of = DenoisingObjective(net, CHAIN, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    data = dataclasses.replace(batch(*range(64)), x=torch.full((64, D), 3))
    first = float(of(data)[0].detach())
    for _ in range(40):
        optimizer.zero_grad()
        loss, metrics = of(data)
        loss.backward()
        optimizer.step()
    assert float(metrics["cross_entropy"]) < 0.3 * first
    assert of.external_parameters() == []
