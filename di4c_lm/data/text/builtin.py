"""The corpus that needs no network and no file: the English documentation that every CPython carries, about 2 MB."""

import ast
import functools
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from di4c_lm.data.text.documents import Documents

_MIN_CHARACTERS = 200
# Not prose, not English, not the standard library, or not on every machine.
_SKIPPED = frozenset(
    ("__phello__", "__pycache__", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo")
    + ("dist-packages", "site-packages", "test", "tests")
)


def _topics() -> Iterator[str]:
    """The language reference as `help()` prints it."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def _docstrings(source: bytes) -> list[str]:
    """Docstrings of a module, its classes and its functions, each once, outer before inner.

    A source that does not parse has none.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners))
    return list(dict.fromkeys(text for text in found if text))


def _modules() -> Iterator[str]:
    """One document a module of the standard library: its docstrings. The sources are parsed, never imported."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(root).parts):
            yield "\n\n".join(_docstrings(path.read_bytes()))


@functools.cache
def _all_documents() -> tuple[str, ...]:
    stripped = (text.strip() for source in (_topics(), _modules()) for text in source)
    return tuple(dict.fromkeys(text for text in stripped if len(text) >= _MIN_CHARACTERS))


def builtin_documents() -> list[str]:
    """`pydoc_data.topics` and the standard library's docstrings, one document a topic and a module.

    The order is fixed, no document is there twice, and none is shorter than 200 characters. The texts differ a little
    between versions of Python.
    """
    return list(_all_documents())


def builtin_corpus() -> Documents:
    """`builtin_documents` as a corpus."""
    return Documents("the documentation of Python", lambda: iter(_all_documents()))
