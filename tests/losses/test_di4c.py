"""Di4C's four terms against the definitions, with everything materialised."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from di4c_lm.losses.di4c import Alpha, alpha, consistency_term, correlation, data_term, distillation_term
from di4c_lm.processes.denoiser import LinearHead, Positions
from tests.losses import oracle
from tests.losses.problem import SETTINGS, Problem, random_problem, read_rows

FAST = settings(max_examples=25, deadline=None)


def exact(problem: Problem) -> dict[str, Tensor]:
    """Every term's parts by the oracle."""
    return oracle.terms(
        problem.log_p(),
        problem.positions.example,
        problem.positions.num_examples,
        problem.x_0,
        problem.samples,
        *problem.distributions,
    )


@FAST
@given(SETTINGS)
def test_the_terms_are_those_of_the_definitions(arguments: dict[str, Any]) -> None:
    problem = random_problem(**{**arguments, "scale": 1.0})
    reading, expected = problem.read(), exact(problem)
    weight_B = torch.linspace(0.1, 0.9, problem.positions.num_examples, dtype=torch.float64)
    close: Any = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(
        data_term(reading, weight_B), weight_B * expected["corr"] + expected["marginal"], **close
    )
    three = data_term(reading, weight_B, marginal_weight=3.0)
    torch.testing.assert_close(three, weight_B * expected["corr"] + 3 * expected["marginal"], **close)
    torch.testing.assert_close(
        consistency_term(reading), expected["target_corr"] + expected["target_marginal"], **close
    )
    torch.testing.assert_close(distillation_term(reading), expected["distil"], **close)


def test_without_the_control_variate_the_log_likelihoods_are_left() -> None:
    problem = random_problem(0, 3, 4, 5, 7)
    reading, weight_B = problem.read(), torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    data_B = data_term(reading, weight_B, marginal_weight=0.0, control_variate=False)
    torch.testing.assert_close(data_B, -weight_B * reading.joint[:, 0])
    torch.testing.assert_close(consistency_term(reading, control_variate=False), -reading.joint[:, 1:].mean(1))


def test_one_component_has_no_correlation() -> None:
    reading = random_problem(0, 3, 1, 5, 7).read()
    torch.testing.assert_close(correlation(reading.joint, reading.product), torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(distillation_term(reading), reading.divergence[:, 0])


def test_the_control_variate_leaves_the_expected_gradient_unchanged() -> None:
    """E over x̂_i ~ the i-th component of the target, given x_u^i and its λ: with and without the control variate, by enumeration."""
    rng = torch.Generator().manual_seed(5)
    num_lambdas, num_positions, num_states = 2, 2, 3
    logits_MLS = torch.randn(num_positions, num_lambdas, num_states, generator=rng, dtype=torch.float64)
    logits_MLS.requires_grad_()
    target_MIS = torch.randn(num_positions, num_lambdas, num_states, generator=rng, dtype=torch.float64).softmax(2)
    positions = Positions.where(torch.ones(1, num_positions, dtype=torch.bool))
    output_head = LinearHead(torch.eye(num_states, dtype=torch.float64))
    expected = {True: torch.zeros(()).double(), False: torch.zeros(()).double()}
    per_sample = list(itertools.product(range(num_states), repeat=num_positions))
    for samples in itertools.product(per_sample, repeat=num_lambdas):
        samples_MI = torch.tensor(samples).T
        probability = target_MIS.gather(2, samples_MI[..., None]).prod()
        targets_MT = torch.cat([samples_MI[:, :1], samples_MI], 1)
        reading = read_rows(logits_MLS, positions, output_head, targets_MT, [target_MIS.mean(1)])
        for on in expected:
            expected[on] = expected[on] + probability * consistency_term(reading, control_variate=on).sum()
    gradients = {on: torch.autograd.grad(value, logits_MLS, retain_graph=True)[0] for on, value in expected.items()}
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-12, atol=1e-12)
    assert gradients[True].abs().max() > 1e-2


@pytest.mark.parametrize(
    "kind, expected",
    [("sigmoid", [4.5397868702e-05, 0.5, 0.9999546021]), ("linear", [0, 0.5, 1]), ("constant", [1, 1, 1])],
)
def test_alpha(kind: Alpha, expected: list[float]) -> None:
    t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert alpha(kind, 0.3, t).tolist() == pytest.approx([0.3 * value for value in expected])
