"""The reference: for each command a page with every key, its default, its type and its line of help, and every kind of each choice."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from di4c_lm.__main__ import Command, commands
from di4c_lm.core.compose import CONFIGS, PRESETS, compose, options, summary
from di4c_lm.core.settings import Field, fields, join, kind_of
from di4c_lm.domains.domain import find_domain
from di4c_lm.runs.evaluate import EVALUATIONS


@dataclass(frozen=True)
class Entry:
    """What the reference says of a command: its words, a line, its settings, and what may be said of its groups."""

    program: str
    help: str
    settings: Any
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Of its page."""
        return f"reference/{'_'.join(self.program.split()[1:])}.md"


def entries() -> list[Entry]:
    """Every command of `di4c`, in the order of its help."""
    return [_entry(program, command) for program, command in _leaves("di4c", commands())]


def _leaves(above: str, below: Mapping[str, Command]) -> Iterator[tuple[str, Command]]:
    for name, command in below.items():
        if command.module:
            yield f"{above} {name}", command
        else:
            yield from _leaves(f"{above} {name}", command.below)


def _entry(program: str, command: Command) -> Entry:
    verb, name = program.split()[1], program.split()[-1]
    if verb == "train":
        settings = find_domain(name).settings
        return Entry(program, command.help, settings(), options(settings, CONFIGS, name))
    if verb == "eval":
        one = EVALUATIONS[name]
        return Entry(program, command.help, compose(one.settings_class(), one.said), options(one.settings_class()))
    settings = import_module(command.module).Settings
    return Entry(program, command.help, settings(), options(settings))


def contents(found: Sequence[Entry]) -> str:
    """A table of the commands, each with its page."""
    rows = [f"| [`{one.program}`]({one.path.rpartition('/')[2]}) | {_text(one.help)} |" for one in found]
    return "\n".join(["| command | |", "| --- | --- |", *rows])


def page(entry: Entry) -> str:
    """A command's page, as Markdown."""
    lines = [
        f"# `{entry.program}`",
        "",
        _sentence(entry.help),
        "",
        "```sh",
        f"{entry.program} [key=value ...]",
        "```",
        "",
    ]
    for group in PRESETS:
        if group in entry.options:
            lines += [f"## `{group}=`", "", *_kinds(group, entry.options[group]), ""]
    return "\n".join([*lines, *_keys("", entry.settings, entry.options, kind="")])


def documented(text: str) -> set[tuple[str, str]]:
    """The keys that a page has in its tables, each with a line of help, as `keys` names them."""
    found, kind = set(), ""
    for line in text.splitlines():
        if line.startswith("#"):
            kind = next((word for word in line.split("`") if re.fullmatch(r"[\w.]+=\w+", word)), "")
        cells = [cell.strip() for cell in line.replace(r"\|", "¦").strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 4 and cells[3]:
            found.add((cells[0].strip("`"), kind))
    return found


def keys(settings: type, above: str = "", kind: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a command, with the kind it belongs to, such as ("mixture.window", "mixture=codes").

    A choice within a kind, such as the sampler within a sampler, is a key: the keys below it are those of its own kinds.
    """
    for name, one in fields(settings).items():
        key = join(above, name)
        if one.is_section and one.registry is None:
            yield from keys(one.hint, key, kind)
        elif one.registry is None or kind:
            yield key, kind
        else:
            for said in one.registry:
                yield from keys(one.section_class(said), key, f"{key}={said}")


def _section(key: str, one: Field, value: Any, options: Mapping[str, Mapping[str, str]], *, kind: str) -> list[str]:
    """A section's keys, or those of each kind of a choice, and the sections below."""
    if one.registry is None:
        where = f" where `{kind}`" if kind else ""
        lines = [f"{'###' if kind else '##'} `{key}`{where}", "", _text(" ".join(summary(type(value)))), ""]
        lines += [*_kinds(key, options[key]), ""] if key in options else []
        return lines + _keys(key, value, options, kind=kind)
    default = kind_of(one.registry, value)
    lines = [
        f"## `{key}=`",
        "",
        f"{_sentence(one.help)} The default is `{default}`.",
        "",
        *_kinds(key, options[key]),
        "",
    ]
    for said, entry in one.registry.items():
        chosen = value if said == default else entry()
        if fields(type(chosen)):
            lines += [f"### `{key}={said}`", "", *_keys(key, chosen, options, kind=f"{key}={said}")]
    return lines


def _keys(key: str, value: Any, options: Mapping[str, Mapping[str, str]], *, kind: str) -> list[str]:
    """The table of a section's own keys, then its sections."""
    below = fields(type(value))
    plain = {name: one for name, one in below.items() if not one.is_section or (one.registry and kind)}
    lines = _table(key, plain, value) if plain else []
    for name, one in below.items():
        if name not in plain:
            lines += _section(join(key, name), one, getattr(value, name), options, kind=kind)
    return lines


def _table(key: str, plain: Mapping[str, Field], value: Any) -> list[str]:
    lines = ["| key | default | value | |", "| --- | --- | --- | --- |"]
    for name, one in plain.items():
        now, allowed, line = getattr(value, name), one.allowed, one.help
        if one.registry is not None:
            now, allowed = kind_of(one.registry, now), f"one of {', '.join(one.registry)}"
            line = f"{line}; its keys follow as {join(key, name)}.<key>"
        shown = now if isinstance(now, str) else json.dumps(now, ensure_ascii=False, separators=(",", ":"))
        lines.append(f"| `{join(key, name)}` | {f'`{shown}`' if shown else ''} | {_text(allowed)} | {_text(line)} |")
    return [*lines, ""]


def _kinds(key: str, lines: Mapping[str, str]) -> list[str]:
    return ["| | |", "| --- | --- |", *(f"| `{key}={kind}` | {_text(line)} |" for kind, line in lines.items())]


def _sentence(line: str) -> str:
    return _text(f"{line[:1].upper()}{line[1:]}.")


def _text(line: str) -> str:
    """A line of help as Markdown: what stands between backticks stays as it is."""
    parts = line.split("`")
    for index in range(0, len(parts), 2):
        for letter in "\\*$|<":
            parts[index] = parts[index].replace(letter, "&lt;" if letter == "<" else f"\\{letter}")
    return "`".join(parts)
