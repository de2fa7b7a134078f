"""The Di4C and MDLM objectives on small networks: laws that hold for every setting."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.data.batches import Batch
from di4c_lm.losses.positions import Positions
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.di4c import Di4CObjective
from di4c_lm.objectives.mdlm import MdlmObjective
from di4c_lm.objectives.settings import Di4CConfig, HopConfig, TimesConfig
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng

S, D = 7, 6
MODEL = DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8)
CODES = LatentConfig(law="codebook", path="adaln", codebook_size=4, init_scale=1.0)
TOKEN = LatentConfig()


def network(latent: LatentConfig | None, seed: int) -> DIT:
    """A small network whose every parameter matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = DIT(MODEL, num_states=S, latent=latent)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return net.double()


def batch(*sample_ids: int) -> Batch:
    ids = torch.tensor(sample_ids)
    x = torch.stack([(torch.arange(D) * (i + 3)) % (S - 1) for i in sample_ids])
    return Batch(x=x, sample_id=ids, epoch=torch.zeros_like(ids))


def objective(latent: LatentConfig = CODES, teacher: LatentConfig | None = None, **settings: Any) -> Di4CObjective:
    config = Di4CConfig(**{"num_lambdas": 4, "delta": 0.3, "alpha_scale": 1.0, **settings})
    return Di4CObjective(network(latent, 1), network(teacher, 2), MaskedProcess(S - 1), config, seed=3)


def gradients(of: Di4CObjective | MdlmObjective, given: Batch) -> dict[str, Tensor]:
    of.zero_grad()
    of(given)[0].backward()
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


SETTINGS = [
    {},
    {"alpha": "linear", "positions": "all"},
    {"alpha": "constant", "control_variate_data": False},
    {"control_variate_consistency": False},
    {"delta_weight": True, "hop": HopConfig(law="fraction", size=0.5, teacher_steps=3)},
    {"hop": HopConfig(law="log_uniform", low=0.01, high=0.4)},
    {"hop": HopConfig(law="uniform", low=0.01, high=0.4)},
    {"times": TimesConfig(law="paper", mass_at_one=0.2, grid_share=0.3)},
    {"consistency_weight": 0.0},
    {"chunk_rows": 5},
    {"consistency_samples": 2},
    {"distil_inputs": "own"},
    {"times": TimesConfig(law="above_hop"), "hop": HopConfig(law="log_uniform", low=0.01, high=0.4)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=[",".join(s) or "default" for s in SETTINGS])
def test_a_batch_is_the_mean_of_its_examples(settings: dict[str, Any]) -> None:
    """So neither the number of ranks nor the micro-batch can change what is learned."""
    of = objective(**settings)
    ids = (0, 1, 2, 3, 4, 5)
    whole = gradients(of, batch(*ids))
    parts = [gradients(of, batch(i)) for i in ids]
    loss, metrics = of(batch(*ids))
    losses = torch.stack([of(batch(i))[0] for i in ids])
    torch.testing.assert_close(loss, losses.mean())
    for name, value in metrics.items():
        torch.testing.assert_close(value, torch.stack([of(batch(i))[1][name] for i in ids]).mean())
    assert any(bool(g.abs().max() > 0) for g in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, sum(part[name] for part in parts) / len(ids), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("latent", [CODES, TOKEN], ids=["codes", "token"])
def test_the_same_examples_give_the_same_loss_and_another_epoch_another(latent: LatentConfig) -> None:
    of = objective(latent)
    first, again = of(batch(0, 1))[0], of(batch(0, 1))[0]
    later = of(dataclasses.replace(batch(0, 1), epoch=torch.ones(2, dtype=torch.long)))[0]
    assert first == again
    assert first != later


def test_the_teacher_is_no_part_of_the_module_and_gets_no_gradient() -> None:
    of = objective()
    before = {name: value.clone() for name, value in of.teacher.state_dict().items()}  # pyright: ignore
    assert all(name.startswith("student.") for name, _ in of.named_parameters())
    gradients(of, batch(0, 1, 2))
    assert all(p.grad is None for p in of.teacher.parameters())  # pyright: ignore
    assert all(torch.equal(before[name], value) for name, value in of.teacher.state_dict().items())  # pyright: ignore


def test_l_one_has_no_correlation_term() -> None:
    of = objective(TOKEN, num_lambdas=1)
    _, metrics = of(batch(*range(8)))
    torch.testing.assert_close(metrics["data_corr"], torch.zeros_like(metrics["data_corr"]))


def test_a_student_that_is_its_teacher_has_no_marginal_or_distillation_loss() -> None:
    """With the λ path silent the student is the product that the teacher is: every divergence from the teacher is 0."""
    teacher = network(None, 2)
    student = network(CODES, 1)
    student.load_state_dict({**student.state_dict(), **teacher.state_dict()})
    for weight in student.latent_modulation.parameters():
        torch.nn.init.zeros_(weight)
    of = Di4CObjective(student, teacher, MaskedProcess(S - 1), Di4CConfig(num_lambdas=4, delta=0.5), seed=0)
    _, metrics = of(batch(*range(8)))
    for name in ("distil", "data_marginal", "data_corr"):
        assert abs(float(metrics[name])) < 1e-9, name


def test_a_mixture_teacher_is_distilled() -> None:
    of = objective(CODES, teacher=CODES, hop=HopConfig(law="fraction", size=0.5, teacher_steps=2))
    loss, metrics = of(batch(*range(6)))
    assert bool(loss.isfinite())
    assert float(metrics["data_marginal"]) > 0


def test_the_upper_side_is_a_law_and_carries_visible_tokens() -> None:
    of = objective(hop=HopConfig(law="fraction", size=0.5))
    x = batch(*range(5)).x
    t_B = torch.full((5,), 0.9, dtype=torch.float64)
    rng = KeyedRng(0, torch.arange(5))
    x_t = of.process.corrupt(x, t_B, rng)
    positions = Positions.where(x_t == S - 1)
    teacher_MS, x_u, u_B = of._teacher_side(x_t, positions, t_B, rng)
    wanted_B = torch.tensor([True, True, False, True, True])
    upper = of._upper_side(x_u, u_B, positions, teacher_MS, positions.gather(x), wanted_B, rng)
    assert upper is not None
    torch.testing.assert_close(upper.marginal.sum(1), torch.ones_like(upper.marginal[:, 0]))
    assert int(upper.samples.max()) < S - 1
    visible_ML = x_u[positions.example, :, positions.position]
    shown = (visible_ML != S - 1) & wanted_B[positions.example, None]
    assert bool(shown.any())
    assert bool((upper.samples == visible_ML)[shown].all())
    kept = x_t[:, None].expand_as(x_u) != S - 1
    assert bool((x_u == x_t[:, None])[kept].all()), "what is visible at t stays"


def test_teacher_hops_reveal_at_the_rate_of_the_process() -> None:
    of = objective(hop=HopConfig(law="fraction", size=0.25, teacher_steps=3))
    x_t = torch.full((800, D), S - 1)
    t_B = torch.full((800,), 0.8, dtype=torch.float64)
    positions = Positions.where(x_t == S - 1)
    _, x_u, u_B = of._teacher_side(x_t, positions, t_B, KeyedRng(1, torch.arange(800)))
    hidden = float((x_u == S - 1).double().mean())
    assert abs(hidden - float(u_B[0] / t_B[0])) < 0.01


def test_the_mdlm_bound_of_a_uniform_network_is_log_s() -> None:
    """E over t and masks of (1/t) Σ_masked log(S - 1) is D (1 - eps) log(S - 1): the weight undoes the rate of masking."""
    net = DIT(MODEL, num_states=S)  # its output head is zero: every state is equally likely
    of = MdlmObjective(net, MaskedProcess(S - 1), seed=0)
    values = torch.stack([of(batch(*range(k, k + 50)))[1]["bound_per_token"] for k in range(0, 10_000, 50)])
    assert abs(float(values.mean()) / torch.log(torch.tensor(S - 1.0)) - 1) < 0.03


@pytest.mark.parametrize("settings", [{}, {"distil_inputs": "own"}], ids=["shared", "own"])
def test_in_the_lead_only_the_likelihood_of_the_data_is_learned_from(settings: dict[str, Any]) -> None:
    alone = {"marginal_weight": 0.0, "consistency_weight": 0.0, "distil_weight": 0.0, "control_variate_data": False}
    of, given = objective(lead_steps=2, **settings), batch(0, 1, 2)
    for update, expected in ((1, objective(**settings, **alone)), (2, objective(**settings)), (0, None), (9, None)):
        of.begin_update(update)
        if expected is not None:
            torch.testing.assert_close(gradients(of, given), gradients(expected, given))
    assert of.config.lead_steps == 2 and of.config.marginal_weight == 1
