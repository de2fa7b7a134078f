"""Samplers by name: settings are read, and refused by name where they cannot be."""

import pytest
import torch

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.processes.schedules import Cosine, LogLinear
from di4c_lm.samplers.blocks import Blocks
from di4c_lm.samplers.calls import Calls
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.draw import Draw
from di4c_lm.samplers.first_hitting import FirstHitting, time_of_level
from di4c_lm.samplers.grids import uniform_grid
from di4c_lm.samplers.hybrid import Hybrid
from di4c_lm.samplers.registry import SAMPLERS, fit_context, make_sampler
from di4c_lm.samplers.remasking import ReMDM
from di4c_lm.samplers.trajectory import sample
from di4c_lm.samplers.walk import Sampler, Walk


def test_names_and_settings_make_samplers() -> None:
    assert make_sampler("first_hitting_parallel") == FirstHitting(tokens_per_call=0)
    assert make_sampler("remasking", {"schedule": "rescale", "eta": 1}) == ReMDM(schedule="rescale", eta=1.0)
    nested = make_sampler("blocks", {"context": 8, "block": 2, "inner": "confidence", "inner.choice_temperature": 1.0})
    assert nested == Blocks(context=8, block=2, inner=Confidence(choice_temperature=1.0))
    assert make_sampler("hybrid", {"last": 3, "inner": "remasking", "inner.eta": 0.1}) == Hybrid(
        last=3, inner=ReMDM(eta=0.1)
    )
    for name in SAMPLERS:
        assert isinstance(make_sampler(name, {"context": 4} if name == "blocks" else {}), Sampler)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("gibbs", {}, "sampler must be one of ancestral, analytic"),
        ("remasking", {"sigma": 1.0}, "sampler=remasking has no setting 'sigma'; allowed are schedule, eta"),
        ("analytic", {"eta": 1.0}, "sampler=analytic has no setting 'eta'; allowed are none"),
        ("remasking", {"eta": "much"}, "remasking.eta='much' is impossible: allowed is a number"),
        ("remasking", {"eta": True}, "remasking.eta=True is impossible"),
        ("remasking", {"eta": 1.5}, r"eta must be in \[0, 1\], got 1.5"),
        ("remasking", {"schedule": "loop"}, "allowed is cap, rescale"),
        ("first_hitting", {"tokens_per_call": -1}, "tokens_per_call must be at least 0, got -1"),
        ("first_hitting", {"tokens_per_call": 1.5}, "allowed is a value of type int"),
        ("confidence", {"choice_temperature": -1.0}, "choice_temperature must be at least 0"),
        ("confidence", {"guidance": -1.0}, "guidance must be at least 0"),
        ("predictor_corrector", {"corrections": -1}, "corrections must be at least 0"),
        ("predictor_corrector", {"size": 0.0}, r"size must be in \(0, 1\]"),
        ("hybrid", {"last": -1}, "last must be at least 0"),
        (
            "hybrid",
            {"inner": "confidence"},
            "hybrid.inner must be one of ancestral, analytic, predictor_corrector|remasking",
        ),
        ("ancestral", {"inner.eta": 1}, "sampler=ancestral has no inner sampler"),
        ("blocks", {}, "sampler=blocks needs context"),
        ("blocks", {"context": 0}, "context must be at least 1"),
        ("blocks", {"context": 4, "block": 5}, r"block must be in \[0, context=4\], got 5"),
    ],
)
def test_what_cannot_be_is_refused(name, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(name, options)


def test_longer_than_the_context_takes_blocks() -> None:
    with pytest.raises(
        ValueError, match="12 positions by Ancestral exceed the context of 8: longer text takes sampler=blocks"
    ):
        fit_context("ancestral", length=12, context=8)
    with pytest.raises(ValueError, match="by Blocks exceed the context of 8"):
        fit_context(Blocks(context=10), length=12, context=8)
    assert fit_context("blocks", length=12, context=8) == Blocks(context=8)


def test_the_hybrid_hands_over(joint, correlated) -> None:
    student, teacher = joint(correlated), joint(correlated)
    x_init, times = torch.full((400, 3), 3), uniform_grid(4)
    for last in range(5):
        student.times, teacher.times = [], []
        sample(
            student, MaskedProcess(3), x_init, times, KeyedRng(0, torch.arange(400)),
            sampler=Hybrid(last=last), teacher=teacher,
        )  # fmt: skip
        assert [round(float(t[0]), 6) for t in student.times] == times[: 4 - last].tolist()
        assert [round(float(t[0]), 6) for t in teacher.times] == times[4 - last : 4].tolist()


@pytest.mark.parametrize(
    "last, given, message", [(1, False, "hybrid needs a teacher"), (3, True, "at most the number of steps, 2")]
)
def test_a_hybrid_that_cannot_be_is_refused(joint, correlated, last, given, message) -> None:
    net = joint(correlated)
    with pytest.raises(ValueError, match=message):
        sample(
            net, MaskedProcess(3), torch.full((2, 3), 3), uniform_grid(2), torch.Generator(),
            sampler=Hybrid(last=last), teacher=net if given else None,
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_nothing_to_sample_is_refused(joint, correlated, shape) -> None:
    with pytest.raises(ValueError, match="at least one sequence of at least one position"):
        sample(joint(correlated), MaskedProcess(3), torch.full(shape, 3), uniform_grid(2), torch.Generator())


def test_hitting_times_fall_and_the_first_is_the_largest_of_uniforms(joint, correlated) -> None:
    """Of 3 masked positions the first is hit at m(t) = m(1) u^(1/3), whose mean is 3/4."""
    net = joint(correlated)
    sample(
        net, MaskedProcess(3), torch.full((4000, 3), 3), uniform_grid(1), KeyedRng(0, torch.arange(4000)),
        sampler=FirstHitting(),
    )  # fmt: skip
    t_KB = torch.stack(net.times)
    assert bool((t_KB.diff(dim=0) < 0).all())
    assert t_KB.mean(1).tolist() == pytest.approx([0.75, 0.5, 0.25], abs=0.02)


def test_few_tokens_are_put_back_where_eta_is_small(joint, independent) -> None:
    """A visible token is masked again at rate eta a step, and the share of MASK stays that of the schedule."""
    states = []
    sample(
        joint(independent), MaskedProcess(3), torch.full((4000, 3), 3), uniform_grid(4), KeyedRng(0, torch.arange(4000)),
        sampler=ReMDM(eta=0.2), on_step=states.append,
    )  # fmt: skip
    for x, s in zip(states, uniform_grid(4)[1:].tolist(), strict=True):
        assert abs(float((x == 3).double().mean()) - 0.999 * s) < 0.02
    again = (states[1] == 3)[states[0] != 3]
    assert abs(float(again.double().mean()) - 0.2) < 0.03


def test_a_level_leads_back_to_its_time(joint, correlated) -> None:
    t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
    for schedule in (LogLinear(), Cosine()):
        walk = Walk(
            calls=Calls(joint(correlated)),
            process=MaskedProcess(3, schedule),
            draw=Draw(),
            rng=torch.Generator(),
            fixed_BD=torch.zeros(20, 3, dtype=torch.bool),
        )
        torch.testing.assert_close(time_of_level(walk, walk.mask_prob(t)), t, rtol=0, atol=1e-7)
