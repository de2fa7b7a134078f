"""What all settings share: sections of typed and documented settings, checked where they are made.

    @section
    class Optim:
        "AdamW with linear warm-up."

        lr: float = setting(1e-3, "learning rate after the warm-up")

        def __post_init__(self) -> None:
            positive(self, "lr")

A section is a frozen dataclass of keyword arguments. Its fields are settings or sections again, `optim: Optim = setting(Optim())`, or a
choice, `objective: Any = choice(OBJECTIVES, Di4C())`, whose class is found in a registry under the name that is said: `objective=sdtt`.
A section may also have

- `kind`, a `Literal` that `teacher=train` sets, and `KINDS`, a line of help on each;
- `PATH_KIND`, the kind that another word after `teacher=` chooses, as its `path`, and `PATH_KEYS`, which then begin from their defaults;
  "" where the section has a path and no kind;
- `unused(self)`, the keys that its other settings leave without effect, each with the reason: `{"path": "where teacher=train"}`;
- `OLD_KEYS`, former keys below it, each with the new one in full: `{"law": "mixture.distribution"}`.
"""

import dataclasses
import functools
import hashlib
import json
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from typing_extensions import dataclass_transform

T = TypeVar("T")
Registry = Mapping[str, Any]  # name of a kind: its class, or a `functools.partial` of one
Ints = tuple[int, ...]
Pair = tuple[float, float]
Texts = tuple[str, ...]
Rounds = tuple[dict[str, Any], ...]
_UNIONS = (Union, types.UnionType)


class SettingError(ValueError):
    """A value that a setting cannot have: `<key> must be <allowed>, got <value>`."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key} must be {allowed}, got {show(value)}")
        self.key, self.value, self.allowed = key, value, allowed

    def within(self, section: str) -> "SettingError":
        """The same error, its key said from the top: below `section`."""
        return SettingError(join(section, self.key), self.value, self.allowed)


def setting(default: Any, help: str = "", *, identity: bool = True) -> Any:  # noqa: A002
    """A field of a section: its default, a line of help, and whether it is part of what makes a run what it is (see `identity`)."""
    return dataclasses.field(default=default, metadata={"help": help, "identity": identity})


def choice(
    registry: Registry | Callable[[], Registry],
    default: Any,
    help: str = "",  # noqa: A002
    *,
    identity: bool = True,
) -> Any:
    """A field that holds a section of one of the classes of `registry`, which is read, or asked for, when it is used first."""
    return dataclasses.field(default=default, metadata={"help": help, "identity": identity, "registry": registry})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def section(cls: type[T]) -> type[T]:
    """A frozen dataclass whose fields have the types they say, whole numbers being numbers and lists tuples. Raises `SettingError`."""
    check_values = getattr(cls, "__post_init__", None)

    def __post_init__(self: Any) -> None:
        for name, one in fields(type(self)).items():
            object.__setattr__(self, name, one.read(getattr(self, name), name))
        if check_values is not None:
            check_values(self)

    cls.__post_init__ = __post_init__  # pyright: ignore[reportAttributeAccessIssue]
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    made.__init__.__annotations__ = {}  # the types are checked above, and by that rule alone
    return made


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a section as the reader of settings sees it."""

    name: str
    hint: Any
    default: Any
    help: str
    identity: bool
    registry: Registry | None

    @property
    def is_section(self) -> bool:
        """Whether keys stand below this one."""
        return self.registry is not None or dataclasses.is_dataclass(self.hint)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The words that may be said of the section: its registry's names, or those of its `kind`."""
        if self.registry is not None:
            return tuple(self.registry)
        kind = fields(self.hint).get("kind") if dataclasses.is_dataclass(self.hint) else None
        return get_args(kind.hint) if kind else ()

    @property
    def allowed(self) -> str:
        """What its value must be."""
        return _describe(self.hint)

    def section_class(self, kind: Any = None) -> type:
        """The class of the section; of a choice, the one of this kind."""
        if self.registry is None:
            return self.hint
        if kind not in self.registry:
            raise SettingError(self.name, kind, f"one of {', '.join(self.registry)}")
        return class_of(self.registry[kind])

    def read(self, value: Any, key: str, *, text: bool = False) -> Any:
        """The value as the field's type has it; with `text`, text is read by that type. Raises `SettingError`."""
        try:
            if self.registry is not None:
                kind_of(self.registry, value)
                return value
            return _read(self.hint, value, text=text)
        except (ValueError, TypeError, IndexError):
            raise SettingError(key, value, self.allowed) from None


@functools.cache
def fields(cls: type) -> dict[str, Field]:
    """The fields of a section's class by name."""
    hints = get_type_hints(cls)
    return {
        one.name: Field(
            one.name,
            hints[one.name],
            one.default if one.default_factory is dataclasses.MISSING else one.default_factory(),
            one.metadata.get("help", ""),
            one.metadata.get("identity", True),
            _registry_of(one),
        )
        for one in dataclasses.fields(cls)
    }


def _registry_of(one: Any) -> Registry | None:
    registry: Any = one.metadata.get("registry")
    found: Any = registry() if callable(registry) else registry
    return found


def class_of(entry: Any) -> type:
    """The class behind an entry of a registry."""
    found: Any = entry.func if isinstance(entry, functools.partial) else entry
    return found


def kind_of(registry: Registry, value: Any) -> str:
    """The name of the kind that a section is: the one it says, or the first of its class. Raises `ValueError` where there is none."""
    names = [name for name, entry in registry.items() if type(value) is class_of(entry)]
    if names:
        return value.kind if getattr(value, "kind", None) in names else names[0]
    raise ValueError(f"{type(value).__name__} is none of {', '.join(registry)}")


def build(cls: type[T], plain: Mapping[str, Any], *, text: bool = False, key: str = "") -> T:
    """A section from nested plain values, absent ones at their defaults; with `text`, text is read by the type of its key.

    Raises `ValueError` that names the key, from the top on, and what it must be.
    """
    known, values = fields(cls), {}
    for name, value in plain.items():
        here = join(key, name)
        if name not in known:
            raise ValueError(f"{here} is no key, got {show(value)}; allowed are {', '.join(known)}")
        one = known[name]
        if one.is_section and isinstance(value, Mapping):
            try:
                below_cls = one.section_class(value.get("kind"))
            except SettingError as error:
                raise error.within(key) from None
            below = {part: inner for part, inner in value.items() if part != "kind" or "kind" in fields(below_cls)}
            entry = one.registry[value["kind"]] if one.registry is not None else below_cls
            implied = entry.keywords if isinstance(entry, functools.partial) else {}
            values[name] = build(below_cls, {**implied, **below}, text=text, key=here)
        else:
            values[name] = one.read(value, here, text=text)
    try:
        return cls(**values)
    except SettingError as error:
        raise error.within(key) from None


def to_dict(settings: Any) -> dict[str, Any]:
    """A section as nested plain values, as `build` reads them; a choice says its `kind` first."""
    plain: dict[str, Any] = {}
    for name, one in fields(type(settings)).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            kind = {} if one.registry is None else {"kind": kind_of(one.registry, value)}
            value = {**kind, **to_dict(value)}
        plain[name] = value
    return plain


def unused_keys(settings: Any, key: str = "") -> dict[str, str]:
    """The keys, or whole sections, that have no effect beside the other settings, each with the reason."""
    report = getattr(settings, "unused", None)
    found = {join(key, name): reason for name, reason in report().items()} if report else {}
    for name in fields(type(settings)):
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            found |= unused_keys(value, join(key, name))
    return found


def identity(settings: Any) -> dict[str, Any]:
    """What makes a run what it is, as nested plain values: all settings that have an effect, but for those with `identity=False`."""
    ignored = {*unused_keys(settings), *_watching(settings)}

    def kept(plain: Mapping[str, Any], key: str) -> dict[str, Any]:
        left = {name: value for name, value in plain.items() if join(key, name) not in ignored}
        return {n: kept(value, join(key, n)) if isinstance(value, dict) else value for n, value in left.items()}

    return kept(to_dict(settings), "")


def run_hash(settings: Any) -> str:
    """Eight hex digits that stand for `identity(settings)`, but for `train.steps`: a run that is made longer is the same run."""
    plain = identity(settings)
    plain["train"] = {name: value for name, value in plain.get("train", {}).items() if name != "steps"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]


def check(ok: object, key: str, value: object, allowed: str) -> None:
    """Raise a `SettingError` that names `key`, says what is `allowed` and shows `value`, unless `ok`."""
    if not ok:
        raise SettingError(key, value, allowed)


def at_least(owner: object, low: int | float, *names: str) -> None:
    """Raise `SettingError` unless each of these fields is at least `low`."""
    for name in names:
        value = getattr(owner, name)
        check(value >= low, name, value, f"at least {low}")


def positive(owner: object, *names: str) -> None:
    """Raise `SettingError` unless each of these fields is above 0."""
    for name in names:
        value = getattr(owner, name)
        check(value > 0, name, value, "above 0")


def unit(owner: object, *names: str) -> None:
    """Raise `SettingError` unless each of these fields is in [0, 1]."""
    for name in names:
        value = getattr(owner, name)
        check(0 <= value <= 1, name, value, "in [0, 1]")


def join(section: str, key: str) -> str:
    """The key from the top of one below `section`."""
    return f"{section}.{key}" if section and key else section or key


def show(value: object) -> str:
    """A value as messages and the help show it: text quoted, all else as JSON."""
    return repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)


def _watching(settings: Any, key: str = "") -> Iterator[str]:
    for name, one in fields(type(settings)).items():
        value = getattr(settings, name)
        if not one.identity:
            yield join(key, name)
        elif dataclasses.is_dataclass(value):
            yield from _watching(value, join(key, name))


def _read(hint: Any, value: Any, *, text: bool) -> Any:
    """The value as `hint` has it. Raises `ValueError` or `TypeError` where it cannot be."""
    origin, args = get_origin(hint), get_args(hint)
    said = value if text and isinstance(value, str) else None
    if origin in _UNIONS:
        for one in sorted(args, key=lambda one: one is str):  # text last: all else is text too
            try:
                return _read(one, value, text=text)
            except (ValueError, TypeError, IndexError):
                continue
        raise ValueError
    if origin is Literal:
        return [one for one in args if (said == _word(one) if said is not None else _same(one, value))][0]
    if origin in (tuple, list, dict):
        return _read_many(origin, args, parse_flow(said) if said is not None else value, text=text)
    if said is not None and hint in (bool, type(None)):
        value = {"true": True, "false": False, "null": None}.get(said.lower(), said)
    elif said is not None and hint in (int, float):
        value = hint(said)
    if hint is float and type(value) is int:
        value = float(value)
    huge = type(value) is int and abs(value) >= 2**63 or type(value) is float and not math.isfinite(value)
    if hint is not Any and (huge or type(value) is not hint):
        raise ValueError
    return value


def _read_many(origin: Any, args: tuple[Any, ...], value: Any, *, text: bool) -> Any:
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError
        return {_read(args[0], name, text=text): _read(args[1], one, text=text) for name, one in value.items()}
    if not isinstance(value, list | tuple):
        raise ValueError
    many = origin is list or args[-1] is Ellipsis
    hints = [args[0]] * len(value) if many else args
    return origin(_read(hint, one, text=text) for hint, one in zip(hints, value, strict=True))


def parse_flow(text: str) -> Any:
    """A list [1,2,4] or a mapping {a: 1}, everything in it as text. Raises `ValueError`."""
    import yaml

    try:
        plain = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not YAML") from error
    if text[:1] not in ("[", "{") or isinstance(plain, str):
        raise ValueError(f"{text!r} is neither a list nor a mapping")
    return plain


def _same(one: Any, value: Any) -> bool:
    return type(one) is type(value) and one == value


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _describe(hint: Any) -> str:
    """What a value of this type is, for messages."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        return " or ".join(_describe(one) for one in args)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(_word(one) for one in args)
    if origin in (tuple, list):
        names = {int: "whole numbers", float: "numbers", str: "text"}
        return f"a list [...] of {names.get(args[0], 'mappings {key: value}')}"
    if origin is dict:
        return "a mapping {key: value}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return names.get(hint) or f"a section, {getattr(hint, '__name__', hint)}"
