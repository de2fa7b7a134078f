"""The reference has every key and every kind of every command, each with a line that says something."""

from typing import Any

import pytest

from di4c_lm.core.compose import help_text, options
from di4c_lm.core.settings import choice, section, setting
from tools.docs.reference import Entry, contents, documented, entries, keys, page

ENTRIES = entries()


@pytest.mark.parametrize("entry", ENTRIES, ids=[one.program for one in ENTRIES])
def test_every_key_of_every_kind_has_a_line(entry: Entry) -> None:
    wanted = set(keys(type(entry.settings)))
    assert wanted and documented(page(entry)) == wanted


@pytest.mark.parametrize("entry", ENTRIES, ids=[one.program for one in ENTRIES])
def test_every_kind_and_preset_has_a_line(entry: Entry) -> None:
    text = page(entry)
    for group, lines in entry.options.items():
        assert all(lines.values()), group
        assert all(f"| `{group}={said}` | " in text for said in lines)


@pytest.mark.parametrize("entry", ENTRIES, ids=[one.program for one in ENTRIES])
def test_it_has_every_key_that_the_help_shows(entry: Entry) -> None:
    shown = help_text(entry.settings, None, "", entry.program).partition("Keys, ")[2].splitlines()[1:]
    names = {line.strip().partition("=")[0] for line in shown if line.startswith("  ")}
    assert names <= {key for key, _ in documented(page(entry))}


def test_every_command_has_a_page_of_its_own_in_the_contents() -> None:
    assert len({one.path for one in ENTRIES}) == len(ENTRIES) > 20
    assert all(f"`{one.program}`" in contents(ENTRIES) for one in ENTRIES)


@section
class _Above:
    """Of a kind."""

    other: int = setting(1, "what is said of it")
    silent: int = setting(1)


@section
class _Settings:
    """Of a command."""

    one: Any = choice({"above": _Above}, _Above(), "a choice")
    mute: bool = setting(False)


def test_a_key_without_a_line_is_noticed() -> None:
    entry = Entry("di4c toy", "nothing", _Settings(), options(_Settings))
    assert set(keys(_Settings)) - documented(page(entry)) == {("mute", ""), ("one.silent", "one=above")}


def test_what_markdown_reads_as_its_own_is_shown_as_it_is() -> None:
    @section
    class Odd:
        """Of a command."""

        key: str = setting("a", "a <folder> | $HOME * `<kept>`")

    assert "| `key` | `a` | text | a &lt;folder> \\| \\$HOME \\* `<kept>` |" in page(Entry("di4c odd", "", Odd(), {}))
