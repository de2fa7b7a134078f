"""Samplers by name, as settings name them."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from di4c_lm.core.settings import build, check, choice, section
from di4c_lm.samplers.ancestral import Analytic, Ancestral
from di4c_lm.samplers.blocks import Blocks
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.corrector import PredictorCorrector
from di4c_lm.samplers.first_hitting import FirstHitting
from di4c_lm.samplers.left_to_right import LeftToRight
from di4c_lm.samplers.remasking import Remasking
from di4c_lm.samplers.tau_leaping import TauLeaping
from di4c_lm.samplers.trajectory import Sampler, name_of

SAMPLERS: dict[str, Any] = {
    "ancestral": Ancestral,
    "analytic": Analytic,
    "first_hitting": FirstHitting,
    "first_hitting_parallel": partial(FirstHitting, tokens_per_call=0),
    "left_to_right": LeftToRight,
    "confidence": Confidence,
    "blocks": Blocks,
    "remasking": Remasking,
    "predictor_corrector": PredictorCorrector,
    "tau_leaping": TauLeaping,
}
_NESTED = ("inner", "predictor")


@section
class _Chosen:
    """What `make_sampler` reads."""

    sampler: Any = choice(SAMPLERS, Ancestral())


def make_sampler(name: str, settings: Mapping[str, Any] | None = None) -> Sampler:
    """The sampler `name` with `settings`, its fields by name. A sampler within one, `inner` or `predictor`, is said by its name,
    and its settings as `inner.<field>`.

    Raises `ValueError` for an unknown name or setting, a value of a wrong type, or one that is impossible; it says what is allowed.
    """
    check(name != "hybrid", "sampler", name, "another: the teacher takes the last steps of any, by hybrid_last=k")
    plain: dict[str, Any] = {"kind": name}
    for key, value in (settings or {}).items():
        section_name, _, below = key.partition(".")
        if section_name in _NESTED:
            plain.setdefault(section_name, {"kind": "ancestral"})[below or "kind"] = value
        else:
            plain[key] = value
    return build(_Chosen, {"sampler": plain}).sampler


def fit_context(sampler: Sampler | str, *, length: int, context: int) -> Sampler:
    """The sampler, by name with default settings, for sequences of `length` under a network trained on `context` positions.

    Raises `ValueError` where it would run the network on more: longer text takes `blocks`.
    """
    if isinstance(sampler, str):
        sampler = make_sampler(sampler)
    if isinstance(sampler, Blocks) and not sampler.context:
        sampler = dataclasses.replace(sampler, context=context)
    longest = min(sampler.context, length) if isinstance(sampler, Blocks) else length
    if longest > context:
        raise ValueError(
            f"length must be at most the context of {context} where sampler={name_of(sampler)}, got {length}: "
            f"longer text takes sampler=blocks with a context of at most {context}"
        )
    return sampler
