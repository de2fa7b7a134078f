import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.losses.di4c import Terms, UpperSide, di4c_terms
from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import mixture_marginals
from di4c_lm.networks.output_head import LinearHead
from tests.losses.problem import FIELDS, Problem, draw

FAST = settings(max_examples=25, deadline=None)
SETTINGS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**20),
        "num_examples": st.integers(1, 3),
        "num_lambdas": st.integers(1, 4),
        "num_positions": st.integers(1, 5),
        "num_states": st.integers(2, 9),
        "masked_share": st.sampled_from([0.0, 0.3, 0.7, 1.0]),
        "scale": st.sampled_from([0.1, 1.0, 6.0]),
        "with_impossible": st.booleans(),
    }
)


def identity(num_states: int, dtype: torch.dtype = torch.float64) -> LinearHead:
    """A output head whose logits are the features."""
    return LinearHead(torch.eye(num_states, dtype=dtype))


def every_position(num_examples: int, num_positions: int) -> Positions:
    return Positions.where(torch.ones(num_examples, num_positions, dtype=torch.bool))


def terms_of(problem: Problem, **options: Any) -> Terms:
    output_head = LinearHead(problem.weight, problem.bias, impossible=problem.impossible)
    return di4c_terms(
        problem.features, output_head, problem.positions, problem.x_0, problem.teacher, problem.upper, **options
    )


def sum_of(terms: Terms) -> Tensor:
    return torch.stack([getattr(terms, name).sum() for name in FIELDS]).sum()


@FAST
@given(SETTINGS, st.integers(0, 9))
def test_values_and_gradients_equal_the_oracle(arguments: dict[str, Any], chunk_rows: int) -> None:
    problem = draw(**arguments)
    terms, gradients = problem.lean(torch.float64, chunk_rows)
    exact_terms, exact_gradients = problem.plain(torch.float64)
    torch.testing.assert_close(terms, exact_terms, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, exact_gradients, rtol=1e-10, atol=1e-10)


@FAST
@given(SETTINGS, st.integers(0, 9))
def test_bfloat16_features_are_read_in_float32(arguments: dict[str, Any], chunk_rows: int) -> None:
    problem = draw(**arguments).rounded(torch.bfloat16)
    terms, gradients = problem.lean(torch.bfloat16, chunk_rows)
    exact_terms, exact_gradients = problem.plain(torch.float64)
    # bfloat16 logits are off by 2^-8 of their size, and the terms by that much a position.
    scale = 2.0**-6 * (1 + problem.weight.abs().max()) * (1 + len(problem.x_0))
    for name in FIELDS:
        assert (terms[name] - exact_terms[name]).abs().max() <= scale * 4
    for ours, exact in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        assert bool(ours.isfinite().all())
        if exact.numel():
            assert (ours.double() - exact).norm() <= 0.3 * exact.norm() + scale


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_float32_is_as_near_to_float64_as_the_plain_way(scale: float) -> None:
    worst: dict[str, list[float]] = {}
    for seed in range(3):
        problem = draw(seed, 2, 8, 24, 1500, width=32, scale=scale, with_impossible=True).rounded(torch.float32)
        exact_terms, exact_gradients = problem.plain(torch.float64)
        runs = (problem.lean(torch.float32), problem.plain(torch.float32))
        for name in FIELDS:
            errors = [float((terms[name].double() - exact_terms[name]).abs().max()) for terms, _ in runs]
            worst[name] = [max(a, b) for a, b in zip(worst.get(name, [0.0, 0.0]), errors, strict=True)]
        for index, exact in enumerate(exact_gradients):
            errors = [float((gradients[index].double() - exact).norm() / exact.norm()) for _, gradients in runs]
            assert errors[0] <= errors[1] + 1e-7
    for name, (lean, plain) in worst.items():
        assert lean <= plain + 1e-7 * 24, name


def test_a_state_that_has_underflowed_everywhere_keeps_its_value_and_gradient() -> None:
    # State 2 lies 200 nats below the others in every component: its probability is 0 in float32, and the laws put weight on it.
    logits_MLS = torch.tensor([[[0.0, 1.0, -200.0], [0.5, 0.0, -190.0]]]).requires_grad_()
    law_MS = torch.tensor([[0.3, 0.3, 0.4]])
    positions = every_position(1, 1)
    upper = UpperSide(samples=torch.tensor([[2, 1]]), marginal=law_MS)
    found, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        terms = di4c_terms(
            logits_MLS.to(dtype), identity(3, dtype), positions, torch.tensor([2]), law_MS.to(dtype), upper, distil=True
        )
        found.append([float(getattr(terms, name).detach()) for name in FIELDS])
        gradients.append(torch.autograd.grad(sum_of(terms), logits_MLS)[0])
    log_p_MLS = logits_MLS.detach().double().log_softmax(2)
    log_mean_S = log_p_MLS[0].logsumexp(0) - math.log(2)
    exact = float((law_MS[0].double() * (law_MS[0].double().log() - log_mean_S)).sum())
    assert found[1][FIELDS.index("data_marginal")] == pytest.approx(exact, rel=1e-7)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    assert gradients[0][0, :, 2].abs().max() > 0.1


def test_one_component_has_no_correlation() -> None:
    terms = terms_of(draw(0, 3, 1, 5, 7), distil=True)
    zero_B = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(terms.data_corr, zero_B)
    torch.testing.assert_close(terms.consistency_corr, zero_B)
    torch.testing.assert_close(terms.distil, terms.data_marginal)


def test_equal_components_are_the_product() -> None:
    problem = draw(1, 3, 4, 5, 7)
    problem.features = problem.features[:, :1].expand(-1, 4, -1).clone()
    terms = terms_of(problem, distil=True)
    problem.features = problem.features[:, :1].clone()
    alone = terms_of(problem, distil=True)
    torch.testing.assert_close(terms.data_corr, torch.zeros(3, dtype=torch.float64))
    for name in FIELDS:
        torch.testing.assert_close(getattr(terms, name), getattr(alone, name))


def joint_law(log_p_LDS: Tensor) -> Tensor:
    """p(x) of every x of D positions, through the loss's own joint term."""
    num_positions, num_states = log_p_LDS.shape[1:]
    states = list(itertools.product(range(num_states), repeat=num_positions))
    positions = every_position(len(states), num_positions)
    features_MLS = log_p_LDS[:, positions.position].transpose(0, 1)
    teacher_MS = features_MLS.softmax(2).mean(1)
    terms = di4c_terms(features_MLS, identity(num_states), positions, torch.tensor(states).flatten(), teacher_MS)
    return torch.exp(-terms.data_joint)


def test_two_equal_bits_need_a_mixture() -> None:
    truth = torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    product = torch.zeros(1, 2, 2, dtype=torch.float64)
    mixture = torch.tensor([[[0.0, -1e6]] * 2, [[-1e6, 0.0]] * 2], dtype=torch.float64)
    assert float((joint_law(product) - truth).abs().sum() / 2) == pytest.approx(0.5, abs=1e-12)
    assert float((joint_law(mixture) - truth).abs().sum() / 2) == pytest.approx(0.0, abs=1e-12)
    assert float(joint_law(mixture).sum()) == pytest.approx(1.0, abs=1e-12)


@FAST
@given(SETTINGS)
def test_each_example_is_by_itself(arguments: dict[str, Any]) -> None:
    problem = draw(**arguments)
    together = terms_of(problem, distil=True)
    for b in range(problem.positions.num_examples):
        mine = problem.positions.example == b
        positions = Positions(
            example=problem.positions.example[mine] * 0, position=problem.positions.position[mine], num_examples=1
        )
        upper = UpperSide(samples=problem.upper.samples[mine], marginal=problem.upper.marginal[mine])
        alone = dataclasses.replace(
            problem,
            features=problem.features[mine],
            positions=positions,
            x_0=problem.x_0[mine],
            teacher=problem.teacher[mine],
            upper=upper,
        )
        for name in FIELDS:
            expected = getattr(terms_of(alone, distil=True), name)
            torch.testing.assert_close(getattr(together, name)[b : b + 1], expected, rtol=1e-12, atol=1e-12)


def test_no_site_gives_zeros_and_zero_gradients() -> None:
    problem = draw(0, 2, 3, 4, 5, masked_share=0.0)
    terms, gradients = problem.lean(torch.float32)
    assert all(bool((value == 0).all()) for value in terms.values())
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_a_certain_position_adds_exactly_nothing() -> None:
    """A visible position of text: constrained to its token, in the data, the samples and the laws alike."""
    problem = draw(3, 2, 4, 6, 5, masked_share=1.0)
    output_head = identity(5, torch.float32)
    logits_MLS = (problem.features @ problem.weight.T + problem.bias).float()
    visible_M = torch.arange(len(logits_MLS)) % 3 == 0
    certain_MS = torch.nn.functional.one_hot(problem.x_0, 5).float()
    logits_MLS[visible_M] = ((certain_MS - 1) * 1e6)[visible_M, None]
    logits_MLS.requires_grad_()
    teacher_MS = torch.where(visible_M[:, None], certain_MS, problem.teacher.float())
    marginal_MS = torch.where(visible_M[:, None], certain_MS, problem.upper.marginal.float())
    samples_MI = torch.where(visible_M[:, None], problem.x_0[:, None], problem.upper.samples)

    def totals(keep_M: Tensor) -> Terms:
        positions = Positions(
            example=problem.positions.example[keep_M], position=problem.positions.position[keep_M], num_examples=2
        )
        upper = UpperSide(samples=samples_MI[keep_M], marginal=marginal_MS[keep_M])
        return di4c_terms(
            logits_MLS[keep_M], output_head, positions, problem.x_0[keep_M], teacher_MS[keep_M], upper, distil=True
        )

    everywhere, masked = totals(torch.ones_like(visible_M)), totals(~visible_M)
    for name in FIELDS:
        assert torch.equal(getattr(everywhere, name), getattr(masked, name)), name
    (gradient,) = torch.autograd.grad(sum_of(everywhere), logits_MLS)
    assert gradient[visible_M].abs().max() < 1e-6  # what is left are the roundings of sums that cancel
    assert bool((gradient[~visible_M] != 0).any())


def test_the_control_variate_leaves_the_expected_gradient_unchanged() -> None:
    """E over x̂_i ~ the i-th u-side component, given x_u^i and mu_i: with and without the control variate, by enumeration."""
    rng = torch.Generator().manual_seed(5)
    num_lambdas, num_positions, num_states = 2, 2, 3
    logits_MLS = torch.randn(num_positions, num_lambdas, num_states, generator=rng, dtype=torch.float64)
    logits_MLS.requires_grad_()
    upper_MIS = torch.randn(num_positions, num_lambdas, num_states, generator=rng, dtype=torch.float64).softmax(2)
    positions, output_head = every_position(1, num_positions), identity(num_states)
    expected = {True: torch.zeros(()).double(), False: torch.zeros(()).double()}
    per_sample = list(itertools.product(range(num_states), repeat=num_positions))
    for samples in itertools.product(per_sample, repeat=num_lambdas):
        samples_MI = torch.tensor(samples).T
        probability = upper_MIS.gather(2, samples_MI[..., None]).prod()
        upper = UpperSide(samples=samples_MI, marginal=upper_MIS.mean(1))
        terms = di4c_terms(logits_MLS, output_head, positions, samples_MI[:, 0], upper_MIS.mean(1), upper)
        with_variate = terms.consistency_corr + terms.consistency_marginal
        expected[True] = expected[True] + probability * with_variate.sum()
        expected[False] = expected[False] + probability * terms.consistency_joint.sum()
    gradients = {on: torch.autograd.grad(value, logits_MLS, retain_graph=True)[0] for on, value in expected.items()}
    torch.testing.assert_close(gradients[True], gradients[False], rtol=1e-12, atol=1e-12)
    assert gradients[True].abs().max() > 1e-2


BAD_SHAPES = {
    "features": lambda p: {"features": p.features[:, :0]},
    "x_0": lambda p: {"x_0": p.x_0[:-1]},
    "teacher": lambda p: {"teacher": p.teacher[:, :-1]},
    "upper.samples": lambda p: {"upper": UpperSide(samples=p.upper.samples[:, :0], marginal=p.upper.marginal)},
    "upper.marginal": lambda p: {"upper": UpperSide(samples=p.upper.samples, marginal=p.upper.marginal[1:])},
}


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("argument", BAD_SHAPES)
def test_shapes_that_disagree_are_named(argument: str) -> None:
    problem = draw(0, 2, 3, 4, 5, masked_share=1.0)
    changed = BAD_SHAPES[argument](problem)
    shape = {
        "upper.samples": problem.upper.samples[:, :0].shape,
        "upper.marginal": problem.upper.marginal[1:].shape,
    }.get(argument) or changed[argument].shape
    with pytest.raises(ValueError, match=argument.replace(".", r"\.")) as error:
        terms_of(dataclasses.replace(problem, **changed))
    assert str(tuple(shape)) in str(error.value)


BAD_VALUES = {
    "features": lambda p: {"features": p.features.index_fill(0, torch.tensor([1]), math.nan)},
    "teacher": lambda p: {"teacher": p.teacher * 2},
    "x_0": lambda p: {"x_0": p.x_0.index_fill(0, torch.tensor([0]), 5)},
    "upper.samples": lambda p: {"upper": UpperSide(samples=p.upper.samples - 5, marginal=p.upper.marginal)},
    "upper.marginal": lambda p: {"upper": UpperSide(samples=p.upper.samples, marginal=p.upper.marginal.log())},
}


@pytest.mark.parametrize("argument", BAD_VALUES)
def test_values_that_cannot_be_are_named(argument: str) -> None:
    problem = draw(0, 2, 3, 4, 5, masked_share=1.0)
    changed = dataclasses.replace(problem, **BAD_VALUES[argument](problem))
    with pytest.raises(
        ValueError, match=rf"{argument}: expected .*shape \(8, " if argument not in ("x_0",) else "x_0: expected"
    ):
        terms_of(changed, validate=True)


def test_the_marginals_mean_is_over_the_components() -> None:
    problem = draw(2, 1, 3, 4, 6, with_impossible=True)
    output_head = LinearHead(problem.weight, problem.bias, impossible=5)
    law_MS = mixture_marginals(problem.features, problem.positions.position, output_head, chunk_rows=2)
    logits_MLS = problem.features @ problem.weight.T + problem.bias
    logits_MLS[..., 5] = -math.inf
    torch.testing.assert_close(law_MS, logits_MLS.softmax(2).mean(1))
    assert bool((law_MS[:, 5] == 0).all())
