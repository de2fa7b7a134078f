"""The command line: presets and `key=value` overrides over the defaults of a section of settings.

    compose(TextSettings, ["experiment=paper_owt", "objective=sdtt", "train.steps=100"], Path("configs"), "text")

`group=name` takes the preset `<configs>/<group>/<name>.yaml`, or `<configs>/<group>/<domain>/<name>.yaml`: nested settings, and presets
that come before them, such as `recipe: di4c`. `recipe=` and `experiment=` are groups, and so is each section. A section that has kinds
takes one of these too, or a path: `objective=sdtt`, `teacher=random`, `data=texts.jsonl`. Another choice, or another preset of its own,
begins from the defaults of the section. A value is text until its key is known: see `di4c_lm.core.settings`.
"""

import difflib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from di4c_lm.core.settings import (
    Field,
    SettingError,
    build,
    class_of,
    fields,
    join,
    kind_of,
    parse_flow,
    show,
    to_dict,
    unused_keys,
)
from di4c_lm.core.terminal import errors_end, say_all_letters

S = TypeVar("S")
Override = str | tuple[str, Any]  # "key=value", or the two apart
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(
    folder / "configs" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "configs").is_dir()
)  # of a wheel, of a checkout
PRESETS = ("recipe", "experiment")  # groups that are no section; in the order in which they are laid
_INSTEAD_OF_RECIPE = (*PRESETS, "mixture", "objective", "rounds")  # where one is said, there is no default recipe
_LAUNCHER_FLAGS = ("--local_rank", "--local-rank")
_HELP, _HELP_COLUMN = ("-h", "--help"), 44


def parse(settings: type[S], argv: Sequence[str], configs: Path | None = None, domain: str = "", *, program: str) -> S:
    """What `compose` makes of a command line. `--help` prints every key and ends; bad input ends with status 2 and the reason."""
    say_all_letters()
    with errors_end():
        composed = compose(settings, overrides_of(argv), configs, domain)
    if any(word in _HELP for word in argv):
        sys.stdout.write(help_text(composed, configs, domain, program))
        raise SystemExit(0)
    return composed


def overrides_of(argv: Sequence[str]) -> list[str]:
    """A command line without what a launcher adds to it, and without `--help`.

    `--train.steps 5` and `--train.steps=5` are train.steps=5, `--show-steps` is show_steps=true.
    """
    said = [word for word in argv if word not in _HELP and not word.startswith(_LAUNCHER_FLAGS)]
    found: list[str] = []
    for word in said:
        is_value = bool(found) and found[-1].startswith("--") and "=" not in word and not word.startswith("--")
        found[-1:] = [f"{found[-1]}={word}"] if is_value else [*found[-1:], word]
    return [_flag(word) if word.startswith("--") else word for word in found]


def _flag(word: str) -> str:
    name, equals, value = word[2:].partition("=")
    return f"{name.replace('-', '_')}={value if equals else 'true'}"


def compose(
    settings: type[S],
    overrides: Sequence[Override],
    configs: Path | None = None,
    domain: str = "",
    *,
    base: Sequence[Override] = (),
) -> S:
    """The defaults of `settings`, then the presets that are said, then the overrides.

    Where no preset is said, nor anything of mixture, objective or rounds, the settings' `DEFAULT_RECIPE` is, if they have one.

    What the settings then imply of keys that nobody said comes last: `settings.implied(said)`, a mapping of keys to values, where they have
    such a method. `base` are overrides that come before the others and may be without effect. Raises `ValueError` for a key that there is
    not, that its value cannot be that of, or that has no effect beside the others; it names the key, the value, and what is allowed.
    """
    tree, pairs = to_dict(settings()), [_pair(one) for one in (*base, *overrides)]
    recipe: str | None = getattr(settings, "DEFAULT_RECIPE", None) if configs else None
    if recipe and not any(key.partition(".")[0] in _INSTEAD_OF_RECIPE for key, _ in pairs):
        pairs, base = [("recipe", recipe), *pairs], [("recipe", recipe), *base]
    said: set[str] = set()
    for layer in _Groups(settings, configs, domain).layers(pairs):
        said |= {key for key, _ in layer}
        for key, value in sorted(layer, key=lambda pair: pair[0].removesuffix(".kind").count(".")):  # kinds come first
            try:
                _assign(settings, tree, key, value)
            except _NoKey as error:
                raise ValueError(_moved(settings, key, value) or _unknown(settings, tree, error)) from None
            except SettingError as error:
                raise ValueError(_moved(settings, key, value) or error) from None
    composed = build(settings, tree, text=True)
    implied: Mapping[str, Any] = getattr(composed, "implied", lambda said: {})(said)
    for key, value in implied.items():
        _assign(settings, tree, key, value)
    composed = build(settings, tree, text=True) if implied else composed
    if not getattr(composed, "rounds", ()):
        refuse_unused([composed], pairs[len(base) :])
    return composed


def compose_rounds(
    settings: S, overrides: Sequence[Override], configs: Path | None, domain: str, folder: Path
) -> list[S]:
    """The settings of each of `settings.rounds`: the run's own overrides, then those of the round. `ValueError` names the round.

    What a round does not say itself: it lives in `<folder>/round_<n>`, its seed is the run's plus n - 1, its `objective.*` are those said
    in the last round of the same objective, and an objective's `round` counts the rounds of that objective.
    """
    run: Any = settings
    own = [pair for pair in map(_pair, overrides) if pair[0] != "rounds"]
    found: list[Any] = []
    said_of: dict[Any, dict[str, Any]] = {}
    count_of: dict[type, int] = {}
    for number, said in enumerate(run.rounds, 1):
        place = {"run.dir": str(folder / f"round_{number}"), "train.seed": run.train.seed + number - 1, "rounds": ()}
        base, said = [*own, *place.items()], {**said_of.get(said.get("objective"), {}), **said}
        said_of[said.get("objective")] = {key: said[key] for key in said if key.startswith("objective.")}
        said_of[said.get("objective")].pop("objective.round", None)
        try:
            one: Any = compose(type(settings), list(said.items()), configs, domain, base=base)
            kind = type(one.objective)
            if "round" in fields(kind):
                count_of[kind] = one.objective.round if "objective.round" in said else count_of.get(kind, 0) + 1
                said["objective.round"] = count_of[kind]
                one = compose(type(settings), list(said.items()), configs, domain, base=base)
        except ValueError as error:
            raise ValueError(f"rounds[{number - 1}]: {error}") from error
        found.append(one)
    refuse_unused(found, own)
    return found


def refuse_unused(settings: Sequence[Any], overrides: Sequence[tuple[str, Any]]) -> None:
    """Raise `ValueError` for an override that has no effect in any of these settings."""
    unused = [unused_keys(one) for one in settings]
    for key, value in overrides:
        reasons = [_reason(one, key) for one in unused]
        if reasons and all(reasons):
            raise ValueError(f"{key} must be left out {reasons[0]}, got {show(value)}")


def help_text(settings: Any, configs: Path | None, domain: str, program: str) -> str:
    """The usage, the groups with what may be said of them, and every key with its value and its line of help."""
    groups, unused = _Groups(type(settings), configs, domain), unused_keys(settings)
    lines = [f"usage: {program} [key=value ...]", "", *summary(type(settings)), ""]
    for group, options in groups.options().items():
        lines += [f"{group}=", *(_columns(f"  {option}", line) for option, line in options.items()), ""]
    lines += ["Keys, with their values:"]
    for key, value, one in leaves(settings):
        if one.is_section:
            kind = f"={kind_of(one.registry, value)}" if one.registry else ""
            lines += ["", _columns(f"{key}{kind}", one.help or " ".join(summary(type(value))))]
        else:
            reason = _reason(unused, key)
            lines.append(
                _columns(f"  {key}={as_said(value)}", f"{one.help}{f' (no effect {reason})' if reason else ''}")
            )
    return "\n".join(lines) + "\n"


def options(settings: type, configs: Path | None = None, domain: str = "") -> dict[str, dict[str, str]]:
    """For each group what may be said of it, presets, kinds and `<path>`, with a line of help each."""
    return _Groups(settings, configs, domain).options()


class _NoKey(ValueError):
    """There is no such key."""

    def __init__(self, key: str, value: Any) -> None:
        super().__init__(f"there is no key {key}, got {show(value)}")
        self.key = key


class _Groups:
    """What may be said after `<group>=`: presets, and the kinds of a section."""

    def __init__(self, settings: type, configs: Path | None, domain: str) -> None:
        self._fields = fields(settings)
        names = [*(PRESETS if configs else ()), *(name for name, one in self._fields.items() if one.is_section)]
        self._files = {name: _preset_files(configs, name, domain) for name in names}

    def layers(
        self, pairs: Sequence[tuple[str, Any]], within: tuple[Path, ...] = ()
    ) -> Iterator[list[tuple[str, Any]]]:
        """The settings of the presets that `pairs` name, one after another, and then what else the pairs say.

        First what the preset of a section says of other sections, then `PRESETS`, then what it says of its own.
        """
        groups = [group for group in self._files if any(key == group for key, _ in pairs)]
        chosen = {group: [value for key, value in pairs if key == group][-1] for group in groups}
        named = {group: self._files[group][name] for group, name in chosen.items() if self._is_preset(group, name)}
        for path in named.values():
            if path in within:
                raise ValueError(f"{path}: a preset must not come before itself")
        plain = {group: _read_preset(path) for group, path in named.items()}
        sections = [group for group in named if group not in PRESETS]
        for group in sections:
            yield [(key, value) for key, value in plain[group].items() if key != group]
        for group in (group for group in PRESETS if group in named):
            yield from self.layers(list(plain[group].items()), (*within, named[group]))
        for group in sections:
            yield [(group, None)]
            yield [(key, value) for key, value in plain[group].items() if key == group]
        yield [(key, value) for key, value in pairs if key not in named and key not in PRESETS]

    def options(self) -> dict[str, dict[str, str]]:
        """For each group, what may be said of it with a line of help each."""
        found: dict[str, dict[str, str]] = {}
        for name, files in self._files.items():
            one, options = self._fields.get(name), {}
            if one and one.registry:
                options = {kind: _kind_line(entry) for kind, entry in one.registry.items()}
            elif one:
                options = {kind: getattr(one.hint, "KINDS", {}).get(kind, "") for kind in one.kinds}
            options |= {preset: _first_comment(path) for preset, path in files.items()}
            path_kind = getattr(one.hint, "PATH_KIND", None) if one and one.registry is None else None
            if path_kind is not None:
                options["<path>"] = (
                    f"{name}.kind={path_kind} {name}.path=<path>" if path_kind else f"{name}.path=<path>"
                )
            if options:
                found[name] = options
        return found

    def _is_preset(self, key: str, value: Any) -> bool:
        if key in PRESETS and key in self._files and value not in self._files[key]:
            raise SettingError(key, value, f"one of {', '.join(self._files[key])}")
        return isinstance(value, str) and value in self._files.get(key, {})


def _assign(settings: type, tree: dict[str, Any], key: str, value: Any, above: str = "") -> None:
    """Set what is said of `key`, one of a section `settings` below `above`, in the section's plain values."""
    name, _, below = key.partition(".")
    one = fields(settings).get(name)
    if one is None or below and not one.is_section:
        raise _NoKey(join(above, key), value)
    if not one.is_section:
        tree[name] = value
        return
    if not below and isinstance(value, str) and value.startswith("{"):
        try:
            value = parse_flow(value)
        except ValueError:
            raise SettingError(join(above, key), value, "a mapping {key: value}") from None
    if below not in ("", "kind"):
        _assign(one.section_class(tree[name].get("kind")), tree[name], below, value, join(above, name))
    elif isinstance(value, Mapping):
        for part, inner in sorted(value.items(), key=lambda item: item[0] != "kind"):
            _assign(settings, tree, f"{name}.{part}", inner, above)
    else:
        if below and value not in one.kinds:
            raise SettingError(join(above, key), value, f"one of {', '.join(one.kinds)}")
        tree[name] = _begun(one, value, tree[name], join(above, name))


def _begun(one: Field, word: str | None, now: dict[str, Any], key: str) -> dict[str, Any]:
    """The plain values of a section of which `word` is said; None: its defaults."""
    default = {"kind": kind_of(one.registry, one.default)} if one.registry else {}
    default |= to_dict(one.default)
    if word is None or word == now.get("kind"):
        return default if word is None else now
    if one.registry is not None and word in one.registry:
        return {"kind": word, **to_dict(one.registry[word]())}
    path_kind = getattr(one.hint, "PATH_KIND", None)
    if word not in one.kinds and path_kind is None:
        allowed = f"one of {', '.join(one.kinds)}" if one.kinds else f"said by its keys, {key}.<key>"
        raise SettingError(key, word, allowed)
    place = {name: default[name] for name in getattr(one.hint, "PATH_KEYS", ())}
    said = {"kind": path_kind, "path": word} if path_kind else {"path": word}
    return {**now, **place, **({"kind": word} if word in one.kinds else said)}


def _moved(settings: type, key: str, value: Any) -> str:
    """What to say of a key, or of a key with this value, that has another name now; nothing of others."""
    for old, new in _old_keys(settings):
        gone = new.startswith("gone")
        if old == f"{key}={value}":
            return f"{old} is {new}" + ("" if gone else " now")
        if old == key or key.startswith(f"{old}."):
            return f"{key} is {new}" + ("" if gone else f"{key[len(old) :]} now") + f", got {show(value)}"
    return ""


def _old_keys(settings: type, above: str = "") -> Iterator[tuple[str, str]]:
    for old, new in getattr(settings, "OLD_KEYS", {}).items():
        yield join(above, old), new
    for name, one in fields(settings).items():
        for kind in one.registry or ((None,) if one.is_section else ()):
            yield from _old_keys(one.section_class(kind), join(above, name))


def _unknown(settings: type, tree: dict[str, Any], error: _NoKey) -> str:
    """The error, and the kinds that have the key, or the keys that it may stand for."""
    kinds = [kind for kind in _kinds_with(settings, error.key) if kind]
    if kinds:
        return f"{error}; it is one of {' and of '.join(kinds)}"
    keys, (section, _, last) = list(_keys(tree)), error.key.rpartition(".")
    beside = [key for key in keys if key.rpartition(".")[0] == section]
    alike = difflib.get_close_matches(last, {key.rpartition(".")[2] for key in keys}, n=len(keys))
    near = [key for key in keys if key.rpartition(".")[2] in alike]
    near = [key for key in near if key in beside] or near
    near.sort(key=lambda key: difflib.SequenceMatcher(None, error.key, key).ratio(), reverse=True)
    hint = f"did you mean {' or '.join(near[:3])}?" if near else f"there are {', '.join(section and beside or tree)}"
    return f"{error}; {hint}"


def _kinds_with(settings: type, key: str, above: str = "") -> Iterator[str]:
    """The kinds, `objective=sdtt`, under which there is such a key; nothing for one that stands under no choice."""
    name, _, below = key.partition(".")
    one = fields(settings).get(name)
    if one is None or not below:
        yield above if one else ""
    elif one.is_section:
        for kind in one.registry or (None,):
            said = f"{join(above.partition('=')[0], name)}={kind}" if kind else above
            yield from _kinds_with(one.section_class(kind), below, said)


def _reason(unused: Mapping[str, str], key: str) -> str:
    """Why a key has no effect; nothing where it has one."""
    return next((why for name, why in unused.items() if key == name or key.startswith(f"{name}.")), "")


def leaves(settings: Any, above: str = "") -> Iterator[tuple[str, Any, Field]]:
    """Key, value and field of all sections and settings, the plain settings of a section before its sections."""
    for name, one in sorted(fields(type(settings)).items(), key=lambda item: item[1].is_section):
        value = getattr(settings, name)
        key = join(above, name)
        yield key, value, one
        if one.is_section:
            yield from leaves(value, key)


def _keys(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for name, value in tree.items():
        key = join(above, name)
        yield from _keys(value, key) if isinstance(value, Mapping) else [key]


def _pair(override: Override) -> tuple[str, Any]:
    if not isinstance(override, str):
        return override
    key, equals, value = override.partition("=")
    if not equals:
        raise SettingError("an argument", override, "key=value; --help lists the keys")
    return key, value


def _preset_files(configs: Path | None, group: str, domain: str) -> dict[str, Path]:
    if configs is None:
        return {}
    folders = (configs / group, configs / group / domain)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _read_preset(path: Path) -> dict[str, Any]:
    """Nested settings, every value as text."""
    import yaml

    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(plain, dict):
        raise ValueError(f"{path} must be a mapping of settings, got {show(plain)}")
    return plain


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def _kind_line(entry: Any) -> str:
    """What a kind is, by its class, and the settings that its name stands for where it is one of several of a class."""
    said = [f"{key}={as_said(value)}" for key, value in getattr(entry, "keywords", {}).items()]
    return " ".join([*summary(class_of(entry)), *([f"({', '.join(said)})"] if said else [])])


def summary(settings: type) -> list[str]:
    """The first paragraph of a class's docstring."""
    return [line.strip() for line in (settings.__doc__ or "").strip().partition("\n\n")[0].splitlines()]


def _columns(key: str, line: str) -> str:
    return f"{key:<{_HELP_COLUMN}}  {line}".rstrip()


def as_said(value: Any) -> str:
    """A value as it is said on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
