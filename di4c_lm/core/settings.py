"""What all settings share: strict fields, and values that are checked where they are made."""

import dataclasses
from typing import Annotated, Any

from pydantic import ConfigDict, Strict

STRICT = ConfigDict(extra="forbid", strict=True)
Pair = Annotated[tuple[float, float], Strict(strict=False)]
Ints = Annotated[tuple[int, ...], Strict(strict=False)]


def check(ok: object, key: str, value: object, allowed: str) -> None:
    """Raise a `ValueError` that names `key`, shows `value` and says what is `allowed`, unless `ok`."""
    if not ok:
        raise ValueError(f"{key}={value!r} is impossible: allowed is {allowed}")


def at_least(owner: object, low: int | float, *names: str) -> None:
    """Raise `ValueError` unless each of these fields is at least `low`."""
    for name in names:
        value = getattr(owner, name)
        check(value >= low, name, value, f"a value of at least {low}")


def positive(owner: object, *names: str) -> None:
    """Raise `ValueError` unless each of these fields is above 0."""
    for name in names:
        value = getattr(owner, name)
        check(value > 0, name, value, "a value above 0")


def unit(owner: object, *names: str) -> None:
    """Raise `ValueError` unless each of these fields is in [0, 1]."""
    for name in names:
        value = getattr(owner, name)
        check(0 <= value <= 1, name, value, "a value in [0, 1]")


def to_dict(config: Any) -> dict[str, Any]:
    """A section as nested plain values, under the names that YAML uses."""
    plain = dataclasses.asdict(config)
    return {"lambda" if key == "latent" else key: value for key, value in plain.items()}
