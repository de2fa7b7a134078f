"""What every sampler promises: given tokens stay, no MASK is left, calls are counted, the batch does not matter; its law."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.draw import Draw
from di4c_lm.samplers.grids import cosine_grid, published_grid, uniform_grid
from di4c_lm.samplers.registry import SAMPLERS, make_sampler
from di4c_lm.samplers.trajectory import Sample, sample

EVERY = [
    *((name, {}) for name in SAMPLERS if name not in ("blocks", "hybrid")),
    ("first_hitting", {"tokens_per_call": 2}),
    ("remasking", {"schedule": "rescale", "eta": 0.5}),
    ("predictor_corrector", {"corrections": 2, "size": 0.5}),
    ("ancestral", {"greedy_end": True}),
    ("blocks", {"context": 2, "block": 1}),
    ("blocks", {"context": 2, "inner": "confidence"}),
    ("hybrid", {"last": 1}),
]
GRIDS = {"uniform": uniform_grid, "cosine": cosine_grid, "published": published_grid}


def run(net, x_init: Tensor, steps: int, name: str, options: dict, *, seed: int = 0, first: int = 0, **more) -> Sample:
    grid = GRIDS[more.pop("grid", "uniform")](steps)
    rng = KeyedRng(seed, torch.arange(first, first + len(x_init)))
    if name == "hybrid":
        more["teacher"] = net
    return sample(net, MaskedProcess(net.num_states), x_init, grid, rng, sampler=make_sampler(name, options), **more)


def p_value(x: Tensor, p: Tensor) -> float:
    """Chi-square of the counts of every joint state."""
    place = torch.zeros(len(x), dtype=torch.int64)
    for position in range(x.shape[1]):
        place = place * p.shape[0] + x[:, position]
    expected = p.double().flatten() / p.double().sum() * len(x)
    return float(chisquare(torch.bincount(place, minlength=p.numel()).numpy(), expected.numpy()).pvalue)


@pytest.mark.parametrize("name, options", EVERY)
@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 7]),
    st.sampled_from(list(GRIDS)),
    st.lists(st.sampled_from([0, 1, 2, 3, 3]), min_size=3, max_size=3),
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
)
def test_what_every_sampler_promises(
    joint, correlated, name, options, steps, grid, known, seed, held, timeless
) -> None:
    given_D = torch.tensor(known)
    net = joint(correlated, lambdas=0 if timeless else 5, timeless=timeless)
    states: list[Tensor] = []
    more = {"grid": grid, "hold_latents": held}
    drawn = run(net, given_D.repeat(6, 1), steps, name, options, seed=seed, on_step=states.append, **more)
    assert bool((drawn.x < 3).all())
    for x in states:
        assert bool((x[:, given_D < 3] == given_D[given_D < 3]).all())
    if not timeless:  # else equal sequences share one call, and are counted all the same
        assert drawn.nfe == sum(net.calls) / 6
        assert drawn.nfe <= 20 if (given_D == 3).any() else drawn.nfe == 0
    part = run(net, given_D.repeat(2, 1), steps, name, options, seed=seed, first=3, **more)
    assert torch.equal(part.x, drawn.x[3:5])


@pytest.mark.parametrize("name, options, steps", [("first_hitting", {}, 1), ("first_hitting_parallel", {}, 3)])
def test_one_token_at_a_time_draws_the_joint_law(joint, correlated, name, options, steps) -> None:
    drawn = run(joint(correlated), torch.full((5000, 3), 3), steps, name, options)
    assert p_value(drawn.x, correlated) > 1e-4
    assert drawn.nfe == 3


def test_one_call_draws_the_product_of_the_marginals(joint, correlated) -> None:
    p = correlated / correlated.sum()
    marginals = torch.einsum("a,b,c->abc", p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1)))
    for name in ("ancestral", "analytic", "first_hitting_parallel", "confidence", "remasking"):
        drawn = run(joint(correlated), torch.full((4000, 3), 3), 1, name, {})
        assert drawn.nfe == 1
        assert p_value(drawn.x, marginals) > 1e-4, name
        assert p_value(drawn.x, correlated) < 1e-9, "the test has the power to tell them apart"


@pytest.mark.parametrize(
    "name, options",
    [
        ("ancestral", {}),
        ("analytic", {}),
        ("remasking", {"eta": 0.3}),
        ("remasking", {"schedule": "rescale", "eta": 0.8}),
        ("predictor_corrector", {"corrections": 2}),
        ("confidence", {"choice_temperature": 1e7}),
        ("hybrid", {"last": 2}),
    ],
)
def test_independent_positions_keep_their_law_at_any_steps(joint, independent, name, options) -> None:
    drawn = run(joint(independent), torch.full((4000, 3), 3), 4, name, options)
    assert p_value(drawn.x, independent) > 1e-4


def test_many_steps_and_corrections_come_near_the_joint_law(joint, correlated) -> None:
    """At 2 steps corrections bring the law nearer to the exact one; at 60 steps it is not told from it."""
    p = correlated.double().flatten() / correlated.sum()

    def distance(name: str, options: dict, steps: int) -> float:
        x = run(joint(correlated), torch.full((4000, 3), 3), steps, name, options).x
        return float((torch.bincount(x[:, 0] * 9 + x[:, 1] * 3 + x[:, 2], minlength=27) / 4000 - p).abs().sum())

    plain = distance("ancestral", {}, 2)
    assert distance("predictor_corrector", {"corrections": 8, "size": 0.3}, 2) < 0.7 * plain
    assert p_value(run(joint(correlated), torch.full((3000, 3), 3), 60, "ancestral", {}).x, correlated) > 1e-4


def test_blocks_condition_on_what_came_before(joint) -> None:
    """Each token equals the one before: a window of 2 that moves by 1 keeps the chain, however long."""
    copy = torch.eye(2) + 1e-9
    x = run(joint(copy), torch.full((400, 7), 2), 1, "blocks", {"context": 2, "block": 1, "inner": "first_hitting"}).x
    assert bool((x == x[:, :1]).all())
    assert abs(float(x[:, 0].double().mean()) - 0.5) < 0.15


def test_a_held_lambda_is_drawn_once_and_a_fresh_one_every_call(joint, correlated) -> None:
    for held in (True, False):
        net = joint(correlated, lambdas=10**6)
        run(net, torch.full((5, 3), 3), 3, "first_hitting", {}, hold_latents=held)
        same = all(torch.equal(net.seen[0], lam) for lam in net.seen[1:])
        assert len(net.seen) == 3
        assert same == held


def test_top_p_leaves_out_the_tail_and_temperature_sharpens(joint, independent) -> None:
    drawn = run(joint(independent), torch.full((3000, 3), 3), 2, "ancestral", {}, draw=Draw(top_p=0.85))
    assert not bool((drawn.x[:, 0] == 2).any())
    assert set(drawn.x[:, 2].tolist()) == {1}
    assert abs(float((drawn.x[:, 0] == 0).double().mean()) - 2 / 3) < 0.04
    cold = run(joint(independent), torch.full((500, 3), 3), 2, "confidence", {}, draw=Draw(temperature=0.01))
    assert bool((cold.x == torch.tensor([0, 2, 1])).all())
