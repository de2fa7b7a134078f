"""Sections of settings: their types, what is read from text, kinds chosen from a registry, keys without effect, identity."""

from functools import partial
from typing import Any, ClassVar, Literal

import pytest

from di4c_lm.core.settings import (
    SettingError,
    Texts,
    build,
    check,
    choice,
    fields,
    identity,
    positive,
    run_hash,
    section,
    setting,
    to_dict,
    unused_keys,
)


@section
class Linear:
    """A straight line."""

    slope: float = setting(1.0, "rise a step")

    def __post_init__(self) -> None:
        positive(self, "slope")


@section
class Steps:
    """A staircase."""

    count: int = setting(3, "stairs")
    side: Literal[1, 2] = setting(1)


@section
class Source:
    """Where a line comes from."""

    PATH_KIND: ClassVar[str] = "file"

    kind: Literal["file", "made"] = setting("made")
    path: str | None = setting(None)

    def unused(self) -> dict[str, str]:
        """The path of a line that is made."""
        return {"path": "where kind=made"} if self.kind == "made" else {}


LINES = {"linear": Linear, "steps": Steps, "high_steps": partial(Steps, count=9)}


@section
class Whole:
    """All of it."""

    line: Any = choice(LINES, Linear(slope=2.0), "the line")
    source: Source = setting(Source())
    name: str | None = setting(None, "of the run", identity=False)
    verbose: bool = setting(False, identity=False)
    sizes: tuple[int, ...] = setting((1, 2))
    pair: tuple[float, float] = setting((0.9, 0.999))
    names: Texts = setting(())
    rounds: tuple[dict[str, Any], ...] = setting(())
    seconds: int | float = setting(600)

    def __post_init__(self) -> None:
        check(self.sizes, "sizes", self.sizes, "at least one size")


def read(**plain: Any) -> Whole:
    return build(Whole, plain, text=True)


@pytest.mark.parametrize(
    "key, text, value",
    [
        *(
            ("name", text, text)
            for text in ("a=b", "it's", "#", "日本語", "1e5", "true", "2026-11-25", "[1]", "{", "a,b")
        ),
        ("name", "null", None),
        ("name", "", ""),
        ("verbose", "true", True),
        ("verbose", "False", False),
        ("sizes", "[3, 4]", (3, 4)),
        ("sizes", "[-1]", (-1,)),
        ("pair", "[0,1e-3]", (0.0, 1e-3)),
        ("names", "[007, on, 'a, b', null]", ("007", "on", "a, b", "null")),
        ("rounds", "[{line: steps, sizes: [1, 2]}]", ({"line": "steps", "sizes": ["1", "2"]},)),
        ("seconds", "3", 3),
        ("seconds", "0.5", 0.5),
    ],
)
def test_text_is_read_by_the_type_of_its_key(key: str, text: str, value: object) -> None:
    found = getattr(read(**{key: text}), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "plain, message",
    [
        ({"sizes": "1,2"}, "sizes must be a list [...] of whole numbers, got '1,2'"),
        ({"sizes": "[1, a]"}, "sizes must be a list [...] of whole numbers, got '[1, a]'"),
        ({"sizes": "[1"}, "sizes must be a list [...] of whole numbers, got '[1'"),
        ({"sizes": "[99999999999999999999]"}, "sizes must be a list [...] of whole numbers"),
        ({"sizes": "[]"}, "sizes must be at least one size, got []"),
        ({"pair": "[1]"}, "pair must be a list [...] of numbers, got '[1]'"),
        ({"rounds": "[1]"}, "rounds must be a list [...] of mappings {key: value}, got '[1]'"),
        ({"verbose": "yes"}, "verbose must be true or false, got 'yes'"),
        ({"source": {"kind": "hub"}}, "source.kind must be one of file, made, got 'hub'"),
        ({"source": {"pth": "x"}}, "source.pth is no key, got 'x'; allowed are kind, path"),
        ({"line": {"kind": "curve"}}, "line must be one of linear, steps, high_steps, got 'curve'"),
        ({"line": {"kind": "linear", "slope": "0"}}, "line.slope must be above 0, got 0.0"),
        ({"line": {"kind": "linear", "slope": "nan"}}, "line.slope must be a number, got 'nan'"),
        ({"line": {"kind": "linear", "slope": "1e999"}}, "line.slope must be a number, got '1e999'"),
        ({"line": {"kind": "steps", "count": "1.5"}}, "line.count must be a whole number, got '1.5'"),
        ({"line": {"kind": "steps", "side": "3"}}, "line.side must be one of 1, 2, got '3'"),
    ],
)
def test_messages_name_the_key_from_the_top(plain: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must be|no key") as caught:
        read(**plain)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "wrong", [{"name": 3}, {"verbose": 1}, {"sizes": "[1]"}, {"sizes": (True,)}, {"line": Source()}, {"seconds": "3"}]
)
def test_python_values_are_typed_strictly(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Whole(**wrong)


def test_whole_numbers_are_numbers_and_lists_are_tuples() -> None:
    assert type(Linear(slope=2).slope) is float
    assert Whole(sizes=[1, 3]).sizes == (1, 3)  # pyright: ignore[reportArgumentType]


def test_a_choice_keeps_its_kind() -> None:
    plain = to_dict(read(line={"kind": "high_steps", "count": "9"}))
    assert plain["line"] == {"kind": "steps", "count": 9, "side": 1}
    assert build(Whole, plain) == Whole(line=Steps(count=9))
    assert fields(Whole)["line"].kinds == tuple(LINES) and fields(Whole)["source"].kinds == ("file", "made")


def test_what_has_no_effect_is_no_part_of_the_identity() -> None:
    assert unused_keys(Whole()) == {"source.path": "where kind=made"}
    assert run_hash(Whole()) == run_hash(Whole(name="a", verbose=True, source=Source(path="x")))
    assert run_hash(Whole()) != run_hash(Whole(line=Linear()))
    assert run_hash(Whole(source=Source(kind="file", path="x"))) != run_hash(
        Whole(source=Source(kind="file", path="y"))
    )
    assert not {"name", "verbose"} & set(identity(Whole()))
