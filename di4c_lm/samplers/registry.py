"""Samplers by name, as settings name them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from di4c_lm.samplers.analytic import Analytic
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.blocks import Blocks
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.corrector import PredictorCorrector
from di4c_lm.samplers.first_hitting import FirstHitting
from di4c_lm.samplers.hybrid import Hybrid
from di4c_lm.samplers.remasking import ReMDM
from di4c_lm.samplers.walk import Sampler

# The class of a name, and the settings that the name itself stands for.
SAMPLERS: dict[str, tuple[type, dict[str, Any]]] = {
    "ancestral": (Ancestral, {}),
    "analytic": (Analytic, {}),
    "first_hitting": (FirstHitting, {}),
    "first_hitting_parallel": (FirstHitting, {"tokens_per_call": 0}),
    "confidence": (Confidence, {}),
    "blocks": (Blocks, {}),
    "remasking": (ReMDM, {}),
    "predictor_corrector": (PredictorCorrector, {}),
    "hybrid": (Hybrid, {}),
}
_INNER = "inner"


def make_sampler(name: str, settings: Mapping[str, Any] | None = None) -> Sampler:
    """The sampler `name` with `settings`, its fields by name. Of `blocks` and `hybrid`, `inner` is a name and `inner.<field>` a setting.

    Raises `ValueError` for an unknown name or setting, a value of a wrong type, or one that is impossible; it says what is allowed.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    kind, implied = SAMPLERS[name]
    hints = get_type_hints(kind)
    nested = {key.removeprefix(_INNER + "."): v for key, v in (settings or {}).items() if key.startswith(_INNER + ".")}
    plain = {key: value for key, value in (settings or {}).items() if not key.startswith(_INNER + ".")}
    fields = [field.name for field in dataclasses.fields(kind)]
    for key, value in list(plain.items()):
        if key not in fields:
            raise ValueError(f"sampler={name} has no setting {key!r}; allowed are {', '.join(fields) or 'none'}")
        if key != _INNER:
            plain[key] = _checked(f"{name}.{key}", value, hints[key])
    if nested or _INNER in plain:
        plain[_INNER] = _make_inner(name, plain.get(_INNER, "ancestral"), nested, hints.get(_INNER))
    missing = [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is field.default_factory is dataclasses.MISSING and field.name not in {*plain, *implied}
    ]
    if missing:
        raise ValueError(f"sampler={name} needs {', '.join(missing)}")
    return kind(**{**implied, **plain})


def fit_context(sampler: Sampler | str, *, length: int, context: int) -> Sampler:
    """The sampler, by name with default settings, for sequences of `length` under a network trained on `context` positions.

    Raises `ValueError` where it would run the network on more: longer text takes `blocks`.
    """
    if isinstance(sampler, str):
        sampler = make_sampler(sampler, {"context": context} if sampler == "blocks" else None)
    longest = min(sampler.context, length) if isinstance(sampler, Blocks) else length
    if longest > context:
        raise ValueError(
            f"{length} positions by {type(sampler).__name__} exceed the context of {context}: "
            f"longer text takes sampler=blocks with a context of at most {context}"
        )
    return sampler


def _make_inner(outer: str, name: Any, settings: Mapping[str, Any], allowed: Any) -> Sampler:
    if allowed is None:
        raise ValueError(f"sampler={outer} has no inner sampler, got {', '.join(settings)} for one")
    inner = make_sampler(name, settings)
    kinds = [one for one in get_args(allowed) if isinstance(one, type)]
    if kinds and not isinstance(inner, tuple(kinds)):
        names = [one for one, (kind, _) in SAMPLERS.items() if kind in kinds]
        raise ValueError(f"{outer}.inner must be one of {', '.join(names)}, got {name!r}")
    return inner


def _checked(key: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        ok, allowed = value in get_args(hint), ", ".join(get_args(hint))
    elif hint is float:
        ok, allowed = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        ok, allowed = type(value) is hint, f"a value of type {hint.__name__}"
    if not ok:
        raise ValueError(f"{key}={value!r} is impossible: allowed is {allowed}")
    return float(value) if hint is float else value
