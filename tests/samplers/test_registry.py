"""Samplers by name: settings are read, and refused by name where they cannot be."""

import pytest

from di4c_lm.core.settings import fields, to_dict
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.blocks import Blocks
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.corrector import PredictorCorrector
from di4c_lm.samplers.first_hitting import FirstHitting
from di4c_lm.samplers.registry import SAMPLERS, fit_context, make_sampler
from di4c_lm.samplers.remasking import Remasking
from di4c_lm.samplers.tau_leaping import TauLeaping
from di4c_lm.samplers.trajectory import Decoding, Sampler, name_of


def test_names_and_settings_make_samplers() -> None:
    assert make_sampler("first_hitting_parallel") == FirstHitting(tokens_per_call=0)
    assert make_sampler("remasking", {"schedule": "rescale", "eta": 1}) == Remasking(schedule="rescale", eta=1.0)
    nested = make_sampler("blocks", {"context": 8, "block": 2, "inner": "confidence", "inner.choice_temperature": 1.0})
    assert nested == Blocks(context=8, block=2, inner=Confidence(choice_temperature=1.0))
    assert make_sampler("blocks", {"inner": "first_hitting_parallel"}) == Blocks(inner=FirstHitting(tokens_per_call=0))
    leaps = make_sampler("predictor_corrector", {"predictor": "tau_leaping", "corrections": 2})
    assert leaps == PredictorCorrector(predictor=TauLeaping(), corrections=2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_is_its_own_settings(name: str) -> None:
    made = make_sampler(name)
    assert isinstance(made, Sampler) and hash(made) == hash(make_sampler(name))
    assert name_of(made) == name.removesuffix("_parallel")
    assert all(one.help for one in fields(type(made)).values()) and type(made).__doc__
    assert set(to_dict(made)) == set(fields(type(made)))


def test_every_option_has_its_line_of_help() -> None:
    assert all(one.help for one in fields(Decoding).values())


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("gibbs", {}, "sampler must be one of ancestral, analytic, .*, got 'gibbs'"),
        ("hybrid", {}, "the teacher takes the last steps of any, by hybrid_last=k"),
        ("remasking", {"sigma": 1.0}, r"sampler\.sigma is no key, got 1.0; allowed are schedule, eta"),
        ("remasking", {"eta": "much"}, r"sampler\.eta must be a number, got 'much'"),
        ("remasking", {"eta": True}, r"sampler\.eta must be a number, got true"),
        ("remasking", {"eta": 1.5}, r"sampler\.eta must be in \[0, 1\], got 1.5"),
        ("remasking", {"schedule": "loop"}, "must be one of cap, rescale, got 'loop'"),
        ("first_hitting", {"tokens_per_call": -1}, "tokens_per_call must be at least 0, got -1"),
        ("first_hitting", {"tokens_per_call": 1.5}, "tokens_per_call must be a whole number, got 1.5"),
        ("confidence", {"choice_temperature": -1.0}, "choice_temperature must be at least 0"),
        ("predictor_corrector", {"corrections": -1}, "corrections must be at least 0"),
        ("predictor_corrector", {"size": 0.0}, "size must be above 0"),
        ("predictor_corrector", {"below": 2.0}, r"below must be in \[0, 1\]"),
        ("predictor_corrector", {"predictor": "blocks"}, "predictor must be one of ancestral, analytic, tau_leaping"),
        ("ancestral", {"inner.eta": 1}, r"sampler\.inner is no key"),
        ("blocks", {"inner": "gibbs"}, r"sampler\.inner must be one of ancestral, .*, got 'gibbs'"),
        ("blocks", {"inner": "blocks"}, r"sampler\.inner must be one of ancestral, .*, got 'blocks'"),
        ("blocks", {"context": -1}, "context must be at least 0"),
        ("blocks", {"context": 4, "block": 5}, "block must be at most context=4, got 5"),
    ],
)
def test_what_cannot_be_is_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sampler(name, options)


def test_longer_than_the_context_takes_blocks() -> None:
    message = (
        "length must be at most the context of 8 where sampler=ancestral, got 12: longer text takes sampler=blocks"
    )
    with pytest.raises(ValueError, match=message):
        fit_context("ancestral", length=12, context=8)
    with pytest.raises(ValueError, match="length must be at most the context of 8 where sampler=blocks"):
        fit_context(Blocks(context=10), length=12, context=8)
    assert fit_context("blocks", length=12, context=8) == Blocks(context=8)
    assert fit_context(Blocks(inner=Confidence()), length=12, context=8) == Blocks(context=8, inner=Confidence())
    assert fit_context("ancestral", length=8, context=8) == Ancestral()
