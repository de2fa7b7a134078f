"""The words `key=value` of a benchmark, by the fields of its settings."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any


def split_words(settings: Any, words: Sequence[str]) -> Iterator[tuple[str, str, type, str]]:
    """Key, value as written, the type of the field's default, the whole word; `ValueError` for one that names no field of `settings`."""
    types = {field.name: type(field.default) for field in dataclasses.fields(settings)}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in types:
            raise ValueError(f"{word!r}: expected key=value with a key among {', '.join(types)}")
        yield key, value, types[key], word
