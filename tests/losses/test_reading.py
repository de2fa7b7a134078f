"""The reading of a mixture: against everything materialised in float64, its properties, and what it refuses."""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.losses.reading import Reading, mixture_marginals, read_mixture, sample_rows
from di4c_lm.processes import denoiser
from di4c_lm.processes.denoiser import LinearHead, Positions, row_chunks, rows_at_once
from tests.losses.problem import FIELDS, SETTINGS, fields_of, random_problem, read_rows
from tests.parity.given import check_values

FAST = settings(max_examples=25, deadline=None)


def identity(num_states: int, dtype: torch.dtype = torch.float64) -> LinearHead:
    """An output head whose logits are the features."""
    return LinearHead(torch.eye(num_states, dtype=dtype))


def every_position(num_examples: int, num_positions: int) -> Positions:
    return Positions.where(torch.ones(num_examples, num_positions, dtype=torch.bool))


def sum_of(reading: Reading) -> Tensor:
    return torch.stack([value.sum() for value in fields_of(reading).values()]).sum()


@FAST
@given(SETTINGS, st.integers(0, 9))
def test_values_and_gradients_equal_the_oracle(arguments: dict[str, Any], chunk_rows: int) -> None:
    problem = random_problem(**arguments)
    found, gradients = problem.lean(torch.float64, chunk_rows)
    exact, exact_gradients = problem.plain(torch.float64)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, exact_gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("states_at_once", [1, 3])
def test_the_backward_pass_goes_by_states_too(states_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoiser, "_STATES_ON_CPU", states_at_once)
    for seed, scale in enumerate((0.1, 6.0)):
        problem = random_problem(seed, 2, 3, 5, 8, scale=scale, with_impossible=True)
        for chunk_rows in (0, 1, 4):
            found, exact = problem.lean(torch.float64, chunk_rows), problem.plain(torch.float64)
            torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


@FAST
@given(SETTINGS, st.integers(0, 9))
def test_bfloat16_features_are_read_in_float32(arguments: dict[str, Any], chunk_rows: int) -> None:
    problem = random_problem(**arguments).rounded(torch.bfloat16)
    found, gradients = problem.lean(torch.bfloat16, chunk_rows)
    exact, exact_gradients = problem.plain(torch.float64)
    # bfloat16 logits are off by 2^-8 of their size, and the sums by that much a position.
    scale = 2.0**-6 * (1 + problem.weight.abs().max()) * (1 + len(problem.x_0))
    for name in FIELDS:
        assert (found[name] - exact[name]).abs().max() <= scale * 4
    for ours, theirs in zip(gradients, exact_gradients, strict=True):
        assert ours.dtype == torch.bfloat16
        assert bool(ours.isfinite().all())
        if theirs.numel():
            assert (ours.double() - theirs).norm() <= 0.3 * theirs.norm() + scale


@pytest.mark.parametrize("scale", [0.01, 1.0, 5.0])
def test_float32_is_as_near_to_float64_as_the_plain_way(scale: float) -> None:
    worst: dict[str, list[float]] = {}
    for seed in range(3):
        problem = random_problem(seed, 2, 8, 24, 1500, width=32, scale=scale, with_impossible=True).rounded(
            torch.float32
        )
        exact, exact_gradients = problem.plain(torch.float64)
        runs = (problem.lean(torch.float32), problem.plain(torch.float32))
        for name in FIELDS:
            errors = [float((found[name].double() - exact[name]).abs().max()) for found, _ in runs]
            worst[name] = [max(a, b) for a, b in zip(worst.get(name, [0.0, 0.0]), errors, strict=True)]
        for index, theirs in enumerate(exact_gradients):
            errors = [float((gradients[index].double() - theirs).norm() / theirs.norm()) for _, gradients in runs]
            assert errors[0] <= errors[1] + 1e-7
    for name, (lean, plain) in worst.items():
        assert lean <= plain + 2e-7 * 24, name


def test_a_state_that_has_underflowed_everywhere_keeps_its_value_and_gradient() -> None:
    # State 2 lies 200 nats below the others in every component: its probability is 0 in float32, and the distributions give it weight.
    logits_MLS = torch.tensor([[[0.0, 1.0, -200.0], [0.5, 0.0, -190.0]]]).requires_grad_()
    q_MS, targets_M2 = torch.tensor([[0.3, 0.3, 0.4]]), torch.tensor([[2, 1]])
    found, gradients = [], []
    for dtype in (torch.float32, torch.float64):
        reading = read_rows(
            logits_MLS.to(dtype),
            every_position(1, 1),
            identity(3, dtype),
            targets_M2,
            [q_MS.to(dtype)],
            components=True,
        )
        found.append(torch.cat([value.detach().flatten() for value in fields_of(reading).values()]))
        gradients.append(torch.autograd.grad(sum_of(reading), logits_MLS)[0])
    log_mean_S = logits_MLS.detach().double().log_softmax(2)[0].logsumexp(0) - math.log(2)
    exact = float((q_MS[0].double() * (q_MS[0].double().log() - log_mean_S)).sum())
    assert float(reading.divergence.detach()) == pytest.approx(exact, rel=1e-7)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0, check_dtype=False)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    assert gradients[0][0, :, 2].abs().max() > 0.1


def test_equal_components_are_the_product() -> None:
    problem = random_problem(1, 3, 4, 5, 7)
    problem.features = problem.features[:, :1].expand(-1, 4, -1).clone()
    together = problem.read()
    alone = dataclasses.replace(problem, features=problem.features[:, :1].clone()).read()
    torch.testing.assert_close(together.joint, together.product)
    torch.testing.assert_close(fields_of(together), fields_of(alone))


def joint_distribution(log_p_LDS: Tensor) -> Tensor:
    """p(x) of every x of D positions, as it is read."""
    num_positions, num_states = log_p_LDS.shape[1:]
    every_x = torch.tensor(list(itertools.product(range(num_states), repeat=num_positions)))
    positions = every_position(len(every_x), num_positions)
    features_MLS = log_p_LDS[:, positions.position].transpose(0, 1)
    return read_rows(features_MLS, positions, identity(num_states), every_x.flatten()[:, None]).joint[:, 0].exp()


def test_two_equal_bits_need_a_mixture() -> None:
    truth = torch.tensor([0.5, 0.0, 0.0, 0.5], dtype=torch.float64)
    product = torch.zeros(1, 2, 2, dtype=torch.float64)
    mixture = torch.tensor([[[0.0, -1e6]] * 2, [[-1e6, 0.0]] * 2], dtype=torch.float64)
    assert float((joint_distribution(product) - truth).abs().sum() / 2) == pytest.approx(0.5, abs=1e-12)
    assert float((joint_distribution(mixture) - truth).abs().sum() / 2) == pytest.approx(0.0, abs=1e-12)
    assert float(joint_distribution(mixture).sum()) == pytest.approx(1.0, abs=1e-12)


@FAST
@given(SETTINGS)
def test_each_example_is_by_itself(arguments: dict[str, Any]) -> None:
    problem = random_problem(**arguments)
    together = fields_of(problem.read())
    for b in range(problem.positions.num_examples):
        mine = problem.positions.example == b
        alone = dataclasses.replace(
            problem,
            features=problem.features[mine],
            positions=Positions(
                example=problem.positions.example[mine] * 0, position=problem.positions.position[mine], num_examples=1
            ),
            targets=problem.targets[mine],
            distributions=tuple(q_MS[mine] for q_MS in problem.distributions),
        )
        for name, value in fields_of(alone.read()).items():
            torch.testing.assert_close(together[name][b : b + 1], value, rtol=1e-12, atol=1e-12)


def test_no_position_gives_zeros_and_zero_gradients() -> None:
    found, gradients = random_problem(0, 2, 3, 4, 5, masked_share=0.0).lean(torch.float32)
    assert all(bool((value == 0).all()) for value in found.values())
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_a_certain_position_adds_exactly_nothing() -> None:
    """A visible position of text: constrained to its token, in the data, the samples and the distributions alike."""
    problem = random_problem(3, 2, 4, 6, 5, masked_share=1.0)
    logits_MLS = (problem.features @ problem.weight.T + problem.bias).float()
    visible_M = torch.arange(len(logits_MLS)) % 3 == 0
    certain_MS = torch.nn.functional.one_hot(problem.x_0, 5).float()
    logits_MLS[visible_M] = ((certain_MS - 1) * 1e6)[visible_M, None]
    logits_MLS.requires_grad_()
    q_MS = [torch.where(visible_M[:, None], certain_MS, q.float()) for q in problem.distributions]
    targets_MT = torch.where(visible_M[:, None], problem.x_0[:, None], problem.targets)

    def read(keep_M: Tensor) -> Reading:
        positions = Positions(
            example=problem.positions.example[keep_M], position=problem.positions.position[keep_M], num_examples=2
        )
        kept = [q[keep_M] for q in q_MS]
        head = identity(5, torch.float32)
        return read_rows(logits_MLS[keep_M], positions, head, targets_MT[keep_M], kept, components=True)

    everywhere, masked = read(torch.ones_like(visible_M)), read(~visible_M)
    for name, value in fields_of(everywhere).items():
        assert torch.equal(value, getattr(masked, name)), name
    (gradient,) = torch.autograd.grad(sum_of(everywhere), logits_MLS)
    assert gradient[visible_M].abs().max() < 1e-6  # what is left are the roundings of sums that cancel
    assert bool((gradient[~visible_M] != 0).any())


BAD_SHAPES = {
    "features": lambda p: {"features": p.features[:, :0]},
    "targets": lambda p: {"targets": p.targets[:-1]},
    "distributions[0]": lambda p: {"distributions": (p.distributions[0][:, :-1], p.distributions[1])},
    "distributions[1]": lambda p: {"distributions": (p.distributions[0], p.distributions[1][1:])},
}


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("argument", BAD_SHAPES)
def test_shapes_that_disagree_are_named(argument: str) -> None:
    problem = random_problem(0, 2, 3, 4, 5, masked_share=1.0)
    with pytest.raises(ValueError) as error:
        dataclasses.replace(problem, **BAD_SHAPES[argument](problem)).read()
    assert str(error.value).startswith(f"{argument} must have shape (8, ")


BAD_VALUES = {
    "features": lambda p: {"features": p.features.index_fill(0, torch.tensor([1]), math.nan)},
    "distributions[0]": lambda p: {"distributions": (p.distributions[0] * 2, p.distributions[1])},
    "distributions[1]": lambda p: {"distributions": (p.distributions[0], p.distributions[1].log())},
    "targets": lambda p: {"targets": p.targets - 5},
}


@pytest.mark.parametrize("argument", BAD_VALUES)
def test_values_that_cannot_be_are_named(argument: str) -> None:
    problem = random_problem(0, 2, 3, 4, 5, masked_share=1.0)
    check_values(problem.features, problem.head(), problem.targets, problem.distributions)
    bad = dataclasses.replace(problem, **BAD_VALUES[argument](problem))
    with pytest.raises(ValueError) as error:
        check_values(bad.features, bad.head(), bad.targets, bad.distributions)
    assert str(error.value).startswith(f"{argument} must be ") and "(8, " in str(error.value)


def test_targets_alone_need_no_distribution() -> None:
    problem = random_problem(0, 1, 2, 4, 6)
    found = read_mixture(problem.features, problem.positions.position, problem.head(), problem.targets)
    expected = problem.log_p().gather(2, problem.targets[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(found.target_log_p, expected)
    assert found.divergence.shape == (len(problem.x_0), 0)
    assert bool((found.component_divergence == 0).all())


def test_equal_weights_are_the_default() -> None:
    problem = random_problem(0, 2, 3, 5, 7, with_impossible=True)
    equal = torch.full((len(problem.x_0), 3), 1 / 3, dtype=torch.float64).log()
    inputs = (
        problem.features, problem.positions.position, problem.head(), problem.targets, problem.distributions
    )  # fmt: skip
    given_weights = read_mixture(*inputs, log_weight=equal, component_divergence=True)
    torch.testing.assert_close(vars(given_weights), vars(read_mixture(*inputs, component_divergence=True)))


def test_marginals_are_the_weighted_mean_of_the_components() -> None:
    problem = random_problem(2, 1, 3, 4, 6, with_impossible=True)
    p_MLS = problem.log_p().exp()
    inputs = (problem.features, problem.positions.position, problem.head())
    found = mixture_marginals(*inputs, chunk_rows=2)
    torch.testing.assert_close(found, p_MLS.mean(1))
    assert bool((found[:, 5] == 0).all())
    weight_ML = torch.rand(len(problem.x_0), 3, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    weighted = mixture_marginals(*inputs, log_weight=weight_ML.log(), chunk_rows=2)
    torch.testing.assert_close(weighted, (weight_ML[..., None] * p_MLS).sum(1))


def test_samples_and_their_distribution_come_from_one_pass() -> None:
    problem = random_problem(0, 2, 3, 5, 9, masked_share=0.8, with_impossible=True)
    head, count = problem.head(), len(problem.x_0)
    into_N = torch.arange(count).repeat_interleave(3)
    features_NH, position_N = problem.features.flatten(0, 1), problem.positions.position[into_N]
    u_N = torch.rand(len(into_N), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for chunk_rows in (0, 1, 4):
        marginal_MS = torch.zeros(count, 9, dtype=torch.float64)
        inputs = (features_NH, position_N, head, u_N, marginal_MS, into_N, 1 / 3)
        found.append(sample_rows(*inputs, chunk_rows=chunk_rows))
        torch.testing.assert_close(marginal_MS, mixture_marginals(problem.features, problem.positions.position, head))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    cdf_NS = head.logits(features_NH, position_N).softmax(1).cumsum(1)
    assert torch.equal(found[0], torch.searchsorted(cdf_NS, u_N[:, None], right=True)[:, 0])


@pytest.mark.parametrize("total, size", [(0, 3), (1, 3), (3, 3), (10, 3)])
def test_chunks_cover_everything_once(total: int, size: int) -> None:
    rows = [i for chunk in row_chunks(total, size) for i in range(total)[chunk]]
    assert rows == list(range(total))
    assert all(chunk.stop - chunk.start <= size for chunk in row_chunks(total, size))


def test_chunks_hold_2_to_the_23_logits_on_cpu_unless_told() -> None:
    output_head = LinearHead(torch.zeros(2**14, 1))
    assert rows_at_once(output_head, 0) == 2**9
    assert rows_at_once(output_head, 7) == 7
    assert rows_at_once(LinearHead(torch.zeros(2**24, 1)), 0) == 1
