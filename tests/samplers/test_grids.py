"""Time grids, by name, listed, and measured on a model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.grids import GRIDS, IntervalErrors, grid_for, make_grid, measure_errors
from di4c_lm.samplers.trajectory import Decoding, check_grid
from tests.samplers.helpers import CHAIN, CORRELATED, INDEPENDENT, Exact, Joint


@given(st.sampled_from(list(GRIDS)), st.integers(1, 300))
def test_every_grid_descends_from_one_to_zero(name: str, steps: int) -> None:
    times = make_grid(name, steps)
    check_grid(times)
    assert len(times) == steps + 1 + (name == "published")


@given(st.sampled_from(list(GRIDS)), st.integers(1, 300), st.sampled_from([0.01, 0.3]))
def test_above_a_floor_no_time_but_0_is_below_it(name: str, steps: int, floor: float) -> None:
    times = make_grid(name, steps, floor=floor)
    check_grid(times)
    assert len(times) == steps + 1
    assert float(times[:-1].min()) >= floor - 1e-12
    if name != "cosine":
        assert times.tolist() == [*torch.linspace(1, floor, steps, dtype=torch.float64).tolist(), 0.0]


def test_named_grids_are_what_they_say() -> None:
    assert make_grid("cosine", 3).tolist() == pytest.approx([1, math.sqrt(3) / 2, 0.5, 0])
    assert make_grid("published", 2).tolist() == pytest.approx([1, 0.500005, 1e-5, 0])
    assert make_grid((1.0, 0.3, 0.0), 99).tolist() == pytest.approx([1, 0.3, 0])


@pytest.mark.parametrize(
    "grid, steps, message",
    [
        ("sine", 3, "grid must be one of uniform, cosine, published or a list of times, got 'sine'"),
        ("uniform", 0, "steps must be at least 1, got 0"),
        ("cosine", -1, "steps must be at least 1, got -1"),
        ((1.0, 0.5), 3, "grid must be times that descend from 1 to 0"),
        ((1.0, 0.5, 0.6, 0.0), 3, "grid must be times that descend from 1 to 0"),
        ((), 3, "grid must be times that descend from 1 to 0"),
    ],
)
def test_what_is_no_grid_is_refused(grid, steps, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(grid, steps)


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_the_best_grid_beats_every_other(seed: int, num_nodes: int) -> None:
    error_KK = torch.rand(
        num_nodes, num_nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).triu(1)
    errors = IntervalErrors(torch.linspace(1, 0, num_nodes, dtype=torch.float64), error_KK)
    inner = errors.times_K[1:-1]
    for steps in range(1, num_nodes):
        best = errors.total(errors.best(steps))
        for chosen in torch.combinations(torch.arange(len(inner)), steps - 1) if steps > 1 else [torch.arange(0)]:
            assert best <= errors.total(torch.cat([errors.times_K[:1], inner[chosen], errors.times_K[-1:]])) + 1e-12
    whole = errors.fewest(errors.times_K)
    assert errors.total(whole) <= errors.total(errors.times_K) + 1e-12


def test_independent_positions_cost_nothing_and_one_step_is_as_good() -> None:
    errors = measure_errors(
        Joint(INDEPENDENT), MaskedProcess(3), torch.full((20, 3), 3), KeyedRng(0, torch.arange(20)), nodes=8
    )
    assert float(errors.error_KK.abs().max()) < 1e-3
    x_init, rng = torch.full((20, 3), 3), KeyedRng(0, torch.arange(20))
    times = grid_for(Joint(INDEPENDENT), MaskedProcess(3), x_init, "fewest", 4, rng)
    assert times.tolist() == [1.0, 0.0]


def test_a_longer_step_never_costs_less_however_few_the_trajectories() -> None:
    """The estimates of five sequences go up and down; a running maximum takes the noise for none."""
    x_init, net = torch.full((5, 3), 3), Joint(CORRELATED, lambdas=1000)
    errors = measure_errors(net, MaskedProcess(3), x_init, KeyedRng(0, torch.arange(5)), nodes=24)
    assert bool((errors.error_KK.diff(dim=1) >= 0).all()) and float(errors.error_KK.max()) > 0
    assert len(net.seen) == 24 and all(torch.equal(lam, net.seen[0]) for lam in net.seen), "λ is held"  # pyright: ignore


def test_the_estimate_is_the_total_correlation_of_what_is_drawn_at_once() -> None:
    """Two equal bits sampled in one step miss log 2 nats, but for fine steps that reveal both (1 in 64)."""
    errors = measure_errors(
        Joint(torch.eye(2) + 1e-6), MaskedProcess(2), torch.full((300, 2), 2), KeyedRng(0, torch.arange(300)), nodes=64
    )
    assert abs(float(errors.error_KK[0, -1]) - math.log(2)) < 0.05
    assert float(errors.error_KK[0, 16]) < 0.15 < float(errors.error_KK[0, 48])
    assert bool((errors.error_KK.diff(dim=1) >= 0).all()), "a longer step is never cheaper"
    best = errors.best(4)
    check_grid(best)
    assert errors.total(best) <= errors.total(make_grid("uniform", 4))
    assert float(best[1]) < 0.95 and errors.total(errors.best(8)) <= errors.total(best)


def test_more_steps_than_nodes_are_refused() -> None:
    errors = IntervalErrors(torch.linspace(1, 0, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"steps must be in \[1, 3\] for 4 nodes, got 4"):
        errors.best(4)


def test_a_grid_is_measured_of_a_masked_process_alone() -> None:
    x_init, rng = torch.zeros(3, 2, dtype=torch.int64), KeyedRng(0, torch.arange(3))
    with pytest.raises(ValueError, match="grid must be one of uniform, cosine, published but for a masked process"):
        grid_for(Exact(), CHAIN, x_init, "optimised", 4, rng)
    assert torch.equal(
        grid_for(Exact(), CHAIN, x_init, "uniform", 4, rng), make_grid("uniform", 4, floor=CHAIN.min_time)
    )


def test_a_grid_is_measured_with_exact_noise_whatever_the_samples_have() -> None:
    x_init = torch.full((20, 3), 3)
    grids = [
        grid_for(
            Joint(CORRELATED),
            MaskedProcess(3),
            x_init,
            "optimised",
            3,
            KeyedRng(0, torch.arange(20)),
            decoding=decoding,
        )
        for decoding in (None, Decoding(noise="legacy_fp32"))
    ]
    assert torch.equal(*grids)
