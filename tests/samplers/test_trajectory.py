"""What every sampler promises on every process, the options beside it, and the calls that are made and counted."""

import doctest
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.core.settings import build, section, setting
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers import trajectory
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.registry import SAMPLERS, make_sampler
from di4c_lm.samplers.trajectory import (
    Calls,
    Certainty,
    Decoding,
    Sampler,
    Trajectory,
    certainty,
    check_process,
    sample,
    sample_keyed,
)
from tests.networks.helpers import dit, half, tokens
from tests.samplers.helpers import (
    CHAIN,
    CHAIN_DATA,
    CHAIN_POSITIONS,
    CORRELATED,
    INDEPENDENT,
    LEVELS,
    Exact,
    Joint,
    masks,
    p_value,
    run,
    run_chain,
    variation,
)

EVERY = [
    *((name, {}) for name in SAMPLERS if name != "tau_leaping"),
    ("first_hitting", {"tokens_per_call": 2}),
    ("remasking", {"schedule": "rescale", "eta": 0.5}),
    ("predictor_corrector", {"corrections": 2, "size": 0.5}),
    ("blocks", {"context": 2, "block": 1}),
    ("blocks", {"context": 2, "inner": "confidence"}),
]
ON_LEVELS = [
    ("ancestral", {}),
    ("analytic", {}),
    ("tau_leaping", {}),
    ("predictor_corrector", {"corrections": 2}),
    ("predictor_corrector", {"predictor": "tau_leaping"}),
]
NOON, EVERYONE = torch.full((4,), 0.5, dtype=torch.float64), torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize("name, options", EVERY)
@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from([1, 2, 3, 7]),
    st.sampled_from(["uniform", "cosine", "published"]),
    st.lists(st.sampled_from([0, 1, 2, 3, 3]), min_size=3, max_size=3),
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["sample", "argmax"]),
)
def test_what_every_sampler_promises_on_a_masked_process(
    name, options, steps, grid, known, seed, held, timeless, end
) -> None:
    """Given tokens stay, no MASK is left, calls are counted, the batch does not matter."""
    given_D = torch.tensor(known)
    net = Joint(CORRELATED, lambdas=0 if timeless else 5, timeless=timeless)
    states: list[Tensor] = []
    more: dict[str, Any] = {"grid": grid, "hold_latents": held, "end": end, "seed": seed}
    found = run(net, given_D.repeat(6, 1), steps, name, options, on_step=states.append, **more)
    assert bool((found.x < 3).all())
    for x in states:
        assert bool((x[:, given_D < 3] == given_D[given_D < 3]).all())
    if not timeless:  # else equal sequences share one call, and are counted all the same
        assert found.nfe == sum(net.calls) / 6
        assert found.nfe <= 20 if (given_D == 3).any() else found.nfe == 0
    part = run(net, given_D.repeat(2, 1), steps, name, options, first=3, **more)
    assert torch.equal(part.x, found.x[3:5])


@pytest.mark.parametrize("name, options", ON_LEVELS)
@pytest.mark.parametrize("steps", [1, 3])
def test_what_every_sampler_promises_on_levels(name: str, options: dict, steps: int) -> None:
    net, states = Exact(mixture=True), []
    found = run_chain(net, 8, steps, name, options, on_step=states.append, end="argmax")
    assert torch.equal(found.x, states[-1]) and found.nfe == net.calls / 8
    assert all(0 <= int(x.min()) <= int(x.max()) < LEVELS for x in states)
    part = run_chain(Exact(mixture=True), 3, steps, name, options, first=5, end="argmax")
    assert torch.equal(part.x, found.x[5:])


@section
class Halves:
    """A sampler in one file: two exact reverse steps in each interval."""

    needs: ClassVar[type] = object
    share: float = setting(0.5, "where in the interval the first one ends")

    def steps(self, trajectory: Trajectory, x: Tensor) -> Iterator[Tensor]:
        """One state an interval."""
        for t, s in trajectory.intervals():
            between = t + self.share * (s - t)
            x = trajectory.reverse(trajectory.reverse(x, t, between), between, s)
            yield x


def test_a_new_sampler_is_one_class_for_every_process() -> None:
    """On a masked process it is ancestral sampling in twice the steps; on levels one with a time between."""
    assert isinstance(Halves(), Sampler)
    net = Joint(CORRELATED)
    assert torch.equal(run(net, 500, 2, Halves()).x, run(net, 500, 4).x)
    assert run_chain(Exact(), 100, 3, Halves(share=0.25)).nfe == 6
    teacher = Joint(CORRELATED)
    run(net, 50, 4, Halves(), teacher=teacher, hybrid_last=2)
    assert [round(float(t[0]), 3) for t in teacher.times] == [0.5, 0.375, 0.25, 0.125]


@pytest.mark.parametrize("name", ["first_hitting", "confidence", "blocks", "remasking"])
def test_a_sampler_that_reveals_has_no_meaning_on_levels(name: str) -> None:
    with pytest.raises(ValueError, match=f"sampler={name} needs a masked process, got GaussianChain"):
        check_process(make_sampler(name), GaussianChain, Decoding())
    with pytest.raises(ValueError, match=f"sampler={name} needs a masked process, got GaussianChain"):
        run_chain(Exact(), 2, 2, name)


def test_leaps_have_no_meaning_on_masks_wherever_they_are_said() -> None:
    for sampler in (make_sampler("tau_leaping"), make_sampler("predictor_corrector", {"predictor": "tau_leaping"})):
        check_process(sampler, GaussianChain, Decoding())
        with pytest.raises(ValueError, match="sampler=tau_leaping needs a chain on ordered levels, got MaskedProcess"):
            check_process(sampler, MaskedProcess, Decoding())


def test_one_call_samples_the_product_of_the_marginals() -> None:
    p = CORRELATED / CORRELATED.sum()
    marginals = torch.einsum("a,b,c->abc", p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1)))
    for name in ("ancestral", "analytic", "first_hitting_parallel", "confidence", "remasking"):
        found = run(Joint(CORRELATED), 4000, 1, name)
        assert found.nfe == 1
        assert p_value(found.x, marginals) > 1e-4, name
        assert p_value(found.x, CORRELATED) < 1e-9, "the test has the power to tell them apart"


@pytest.mark.parametrize(
    "name, options, more",
    [
        ("ancestral", {}, {}),
        ("analytic", {}, {}),
        ("remasking", {"eta": 0.3}, {}),
        ("remasking", {"schedule": "rescale", "eta": 0.8}, {}),
        ("predictor_corrector", {"corrections": 2}, {}),
        ("confidence", {"choice_temperature": 1e7}, {}),
        ("ancestral", {}, {"hybrid_last": 2}),
    ],
)
def test_independent_positions_keep_their_distribution_at_any_steps(name: str, options: dict, more: dict) -> None:
    found = run(Joint(INDEPENDENT), 4000, 4, name, options, teacher=Joint(INDEPENDENT), **more)
    assert p_value(found.x, INDEPENDENT) > 1e-4


# --- decoding


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=1, max_size=30), st.floats(0.01, 1.0), st.floats(0.1, 5.0))
def test_the_nucleus_is_the_smallest_set_that_holds_top_p(
    logits: list[float], top_p: float, temperature: float
) -> None:
    logits_1S = torch.tensor([logits], dtype=torch.float64)
    p_S = (logits_1S / temperature).softmax(1)[0]
    decoding = Decoding(top_p=top_p, temperature=temperature)
    weight_1S = decoding.weights(logits_1S.clone())
    kept_S = weight_1S[0] > 0
    least = float(p_S[kept_S].min())
    possible_S = p_S > 1e-300
    assert float(p_S[kept_S].sum()) >= top_p - 1e-9
    assert float(p_S[kept_S & (p_S > least)].sum()) < top_p + 1e-9, "without its least likely members it holds less"
    assert not bool((possible_S & ~kept_S & (p_S > least * (1 + 1e-9))).any())
    torch.testing.assert_close(decoding.probabilities(logits_1S.clone()), weight_1S / weight_1S.sum())


def test_top_p_leaves_out_the_tail_and_temperature_sharpens() -> None:
    found = run(Joint(INDEPENDENT), 3000, 2, top_p=0.85)
    assert not bool((found.x[:, 0] == 2).any())
    assert set(found.x[:, 2].tolist()) == {1}
    assert abs(float((found.x[:, 0] == 0).double().mean()) - 2 / 3) < 0.04
    half = run(Joint(torch.tensor([0.6, 0.4])), 8000, 1, temperature=0.5).x
    assert abs(float((half == 0).double().mean()) - 0.36 / (0.36 + 0.16)) < 0.02
    cold = run(Joint(INDEPENDENT), 500, 2, "confidence", temperature=0.01)
    assert bool((cold.x == torch.tensor([0, 2, 1])).all())


def test_temperature_and_nucleus_act_on_levels_too() -> None:
    assert bool((run_chain(Exact(), 50, 1, temperature=1e-9).x == run_chain(Exact(), 50, 1, end="argmax").x).all())
    assert bool((run_chain(Exact(), 50, 1, top_p=1e-3).x == run_chain(Exact(), 50, 1, end="argmax").x).all())


@pytest.mark.parametrize("name", ["ancestral", "first_hitting", "confidence", "remasking", "predictor_corrector"])
def test_the_last_step_may_take_the_likeliest(name: str) -> None:
    """The network's likeliest state is the last of two; in the steps before it is sampled."""
    net = Joint(torch.tensor([0.4, 0.6]))
    assert bool((run(net, 50, 1, name, end="argmax").x == 1).all())
    if name != "first_hitting":  # whose one token is its last step
        states = []
        run(net, 400, 4, name, end="argmax", on_step=states.append)
        assert bool((states[0] == 0).any())


@pytest.mark.parametrize("name", ["ancestral", "first_hitting", "confidence", "remasking", "blocks"])
def test_at_temperature_0_every_state_is_the_likeliest(name: str) -> None:
    net = Joint(torch.tensor([0.4, 0.6]))
    assert bool((run(net, 50, 1, name, temperature=0.0).x == 1).all())


def test_at_temperature_0_a_leap_goes_by_the_likeliest_level() -> None:
    levels = run_chain(Exact(), 8, 40, "tau_leaping", temperature=0.0).x
    assert levels.shape == (8, 2) and int(levels.max()) < 3


@pytest.mark.parametrize("by, expected", [("probability", -0.6931), ("entropy", -1.0397), ("margin", 0.25)])
def test_how_sure_a_distribution_is(by: Certainty, expected: float) -> None:
    weights = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert float(certainty(weights, torch.tensor([0]), by)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"noise": "coarse"}, "noise must be one of exact, legacy_fp32, got 'coarse'"),
        ({"end": "draw"}, "end must be one of sample, argmax, got 'draw'"),
        ({"guidance": -1.0}, "guidance must be at least 0, got -1.0"),
        ({"hybrid_last": -1}, "hybrid_last must be at least 0, got -1"),
    ],
)
def test_impossible_options_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Decoding, wrong)


# --- hybrid, guidance, λ


@pytest.mark.parametrize("name", ["ancestral", "confidence", "first_hitting_parallel", "remasking"])
def test_the_hybrid_hands_over(name: str) -> None:
    student, teacher = Joint(CORRELATED), Joint(CORRELATED)
    times = make_grid("uniform", 4)
    for last in range(6):  # of more steps than there are, all
        student.times, teacher.times = [], []
        run(student, 400, 4, name, teacher=teacher, hybrid_last=last)
        assert len(student.times) <= max(0, 4 - last) and len(teacher.times) <= last
        if name == "ancestral":
            assert [round(float(t[0]), 6) for t in student.times] == times[: max(0, 4 - last)].tolist()
            assert [round(float(t[0]), 6) for t in teacher.times] == times[max(0, 4 - last) : 4].tolist()


def test_the_hybrid_hands_over_on_levels() -> None:
    student, teacher = Exact(mixture=True), Exact()
    found = run_chain(student, 6, 10, teacher=teacher, hybrid_last=3)
    assert (student.calls, teacher.calls, found.nfe) == (42, 18, 10)


def test_a_hybrid_that_cannot_be_is_refused() -> None:
    net = Joint(CORRELATED)
    with pytest.raises(ValueError, match="hybrid_last must be 0 where no teacher is given, got 1"):
        run(net, 2, 2, hybrid_last=1)


@pytest.mark.parametrize("name", ["ancestral", "confidence", "first_hitting_parallel"])
def test_guidance_extrapolates_and_counts_twice(name: str) -> None:
    """The condition c adds c to the logit of state 0; guided by w it adds (1 + w) c."""
    net = Joint(INDEPENDENT)
    found = run(net, 4000, 1, name, guidance=2.0, cond=torch.full((4000,), 0.5))
    weight = torch.tensor([0.6 * torch.e**1.5, 0.3, 0.1])
    assert abs(float((found.x[:, 0] == 0).double().mean()) - float(weight[0] / weight.sum())) < 0.03
    assert found.nfe == 2 == sum(net.calls) / 4000


@pytest.mark.parametrize(
    "ramp, steps, guided",
    [("linear", 1, [True]), ("linear", 3, [False, True, True]), ("constant", 3, [True, True, True])],
)
def test_guidance_is_ramped_and_whole_in_a_single_step(ramp: str, steps: int, guided: list[bool]) -> None:
    net = Joint(CORRELATED)
    found = run(net, 2, steps, "confidence", guidance=2.0, guidance_ramp=ramp, cond=torch.tensor([0.5, 1.0]))
    expected = [given_ for with_free in guided for given_ in [True] + [False] * with_free]
    assert [cond is not None for cond in net.conds] == expected
    assert found.nfe == steps + sum(guided)


def test_a_mixture_is_guided_under_one_lambda() -> None:
    """Where the network answers `guided`, both predictions are its, and λ is the one that was sampled."""

    class Paired(Joint):
        def guided(self, x_t: Tensor, t: Tensor, lam: Tensor, cond: Tensor) -> tuple[Any, Any]:
            asked.append(lam)
            return self(x_t, t, lam, cond), self(x_t, t, lam + 1, None)

    asked: list[Tensor] = []
    net = Paired(CORRELATED, lambdas=9)
    run(net, 3, 1, guidance=1.0, cond=torch.ones(3))
    assert len(asked) == 1 and net.seen[0] is not None and net.seen[1] is not None
    assert torch.equal(asked[0], net.seen[0]) and torch.equal(net.seen[1], asked[0] + 1)


def test_guidance_without_a_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance must be 0 where no condition"):
        run(Joint(INDEPENDENT), 2, 2, guidance=2.0)


@pytest.mark.parametrize("held", [True, False])
def test_a_held_lambda_is_sampled_once_and_a_fresh_one_every_call(held: bool) -> None:  # noqa: FBT001
    net = Joint(CORRELATED, lambdas=10**6)
    run(net, 5, 3, "first_hitting", hold_latents=held)
    assert len(net.seen) == 3
    assert all(torch.equal(net.seen[0], lam) for lam in net.seen[1:]) == held  # pyright: ignore[reportArgumentType]


# --- calls


def features_of(calls: Calls, x: Tensor, t: Tensor = NOON) -> Tensor:
    call = calls(x, t, EVERYONE, torch.Generator())
    assert call is not None
    return call.conditional.features


def test_what_has_not_changed_is_not_run_again() -> None:
    net = Joint(CORRELATED, timeless=True)
    calls = Calls(net)
    x = torch.tensor([[3, 3, 3], [0, 3, 3], [1, 3, 3], [2, 3, 3]])
    assert torch.equal(features_of(calls, x), features_of(calls, x, NOON / 2))
    assert calls.made == sum(net.calls) == 4
    x[2, 1] = 0
    assert torch.equal(features_of(calls, x), Joint(CORRELATED)(x, NOON.float()).features)
    assert calls.made == sum(net.calls) == 5


def test_what_was_predicted_at_other_positions_is_run_again() -> None:
    network = dit()
    calls, x, noon = Calls(network), tokens(2), half(2).double()
    found = []
    for position in (0, 0, 4):
        at = torch.zeros_like(x, dtype=torch.bool)
        at[:, position] = True
        call = calls(x, noon, at.any(1), torch.Generator(), at=at)
        assert call is not None
        found.append((calls.made, call.conditional.features[:, 0, position]))
    assert [made for made, _ in found] == [2, 2, 4]
    whole = network(x, half(2)).features[:, 0]
    torch.testing.assert_close(found[1][1], whole[:, 0])
    torch.testing.assert_close(found[2][1], whole[:, 4])


def test_equal_sequences_share_a_run_and_are_counted_all() -> None:
    net = Joint(CORRELATED, timeless=True)
    calls = Calls(net)
    features = features_of(calls, masks(4, net))
    assert net.calls == [1]
    assert calls.made == 4
    assert torch.equal(features, Joint(CORRELATED)(masks(4, net), NOON.float()).features)


@pytest.mark.parametrize("lambdas, timeless", [(0, False), (3, True), (3, False)])
def test_a_network_with_lambda_or_time_is_always_run(lambdas: int, timeless: bool) -> None:  # noqa: FBT001
    net = Joint(CORRELATED, lambdas=lambdas, timeless=timeless)
    calls = Calls(net)
    for _ in range(2):
        features_of(calls, masks(4, net))
    assert calls.made == sum(net.calls) == 8


def test_where_nothing_is_run_a_lambda_is_sampled_all_the_same() -> None:
    """So that a sequence's noise does not depend on what others need."""
    net, rng, again = Joint(CORRELATED, lambdas=5), *(KeyedRng(0, torch.arange(4)) for _ in range(2))
    assert Calls(net)(masks(4, net), NOON, ~EVERYONE, rng) is None and not net.calls
    again.uniform((4, 1, 1))
    assert torch.equal(rng.uniform((4, 2)), again.uniform((4, 2)))


def test_the_cache_leaves_the_samples_as_they_are() -> None:
    for name in ("confidence", "blocks"):
        found = [run(Joint(CORRELATED, timeless=timeless), 50, 6, name).x for timeless in (False, True)]
        assert torch.equal(*found)


# --- sample


def test_the_example_in_the_docstring_runs() -> None:
    found = doctest.testmod(trajectory)
    assert found.attempted > 5 and not found.failed


@pytest.mark.parametrize("times", [[1.0], [1.0, 0.5], [0.9, 0.0], [1.0, 0.5, 0.5, 0.0]])
def test_a_grid_that_is_none_is_refused(times: list[float]) -> None:
    grid, rng = torch.tensor(times, dtype=torch.float64), KeyedRng(0, torch.arange(2))
    with pytest.raises(ValueError, match="descend from 1 to 0"):
        sample(Joint(CORRELATED), MaskedProcess(3), masks(2, CORRELATED), grid, rng)
    with pytest.raises(ValueError, match="descend from 1 to 0"):
        sample(Exact(), CHAIN, torch.zeros(2, CHAIN_POSITIONS, dtype=torch.int64), grid, rng)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_to_sample_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one sequence of at least one position"):
        sample(Joint(CORRELATED), MaskedProcess(3), torch.full(shape, 3), make_grid("uniform", 2), torch.Generator())


def test_a_keyed_sample_depends_on_its_number_alone() -> None:
    net, more = Joint(CORRELATED), {"seed": 3, "sampler": "confidence"}
    whole = sample_keyed(net, MaskedProcess(3), (7, 3), make_grid("uniform", 3), **more)
    parts = sample_keyed(net, MaskedProcess(3), (7, 3), make_grid("uniform", 3), batch_size=2, **more)
    assert torch.equal(whole.x, parts.x) and whole.nfe == parts.nfe
    assert torch.equal(whole.x, run(net, 7, 3, "confidence", seed=3).x)
    chain = sample_keyed(Exact(), CHAIN, (9, 2), make_grid("uniform", 3, floor=CHAIN.min_time), seed=7, batch_size=4)
    assert torch.equal(chain.x, run_chain(Exact(), 9, 3).x)
    known = torch.tensor([[0, 3, 3]]).repeat(7, 1)
    given_ = sample_keyed(net, MaskedProcess(3), (7, 3), make_grid("uniform", 3), x_init=known, batch_size=2, **more)
    assert torch.equal(given_.x[:, 0], known[:, 0])


@pytest.mark.parametrize("shape, batch, name", [((0, 3), 4, "num_samples"), ((2, 3), 0, "batch_size")])
def test_sizes_below_one_are_refused(shape: tuple[int, int], batch: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        sample_keyed(Joint(CORRELATED), MaskedProcess(3), shape, make_grid("uniform", 1), seed=0, batch_size=batch)


def test_a_mixture_that_is_exact_gives_the_data_in_one_call_but_for_the_prior() -> None:
    """Where t = 1 is pure noise, one sample of λ is a sample of the data; a product of marginals is none."""
    assert variation(run_chain(Exact(mixture=True), 20_000, 1).x, CHAIN_DATA) < 0.03
    assert variation(run_chain(Exact(), 20_000, 1).x, CHAIN_DATA) > 0.2


def test_every_step_is_seen() -> None:
    for steps in (1, 5):
        states: list[Tensor] = []
        run(Joint(CORRELATED), 2, steps, on_step=states.append)
        run_chain(Exact(), 2, steps, on_step=states.append)
        assert len(states) == 2 * steps
    assert math.isclose(float(make_grid("uniform", 1000)[1]), 0.999)
