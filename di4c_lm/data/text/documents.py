"""A corpus before it is tokenised: a named series of texts that can be read again from any place, and its split by document."""

import ast
import dataclasses
import functools
import hashlib
import itertools
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

VALIDATION_CHARACTERS = 16_000_000  # of held-out text that is kept: the first documents up to so many
_HASHES = 1 << 64


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Between two documents: where in which file reading resumes, and what was counted on the way there from the corpus' start.

    `offset` counts unpacked bytes in files of lines, rows in parquet, and documents in a corpus that has no files.
    """

    file: int = 0
    offset: int = 0
    documents: int = 0  # not empty, of all ranks
    replaced: int = 0  # invalid UTF-8, in places
    skipped: int = 0  # records and files that could not be read


# Documents, each with the place behind it; then once the corpus' end, None, with the last counts.
Walk = Iterator[tuple[Place, str | None]]


@dataclasses.dataclass(frozen=True)
class Documents:
    """A corpus: each `read()` goes through all its documents again, in the same order. Errors and logs say `name`.

    `walk_files(start, rank, world_size)` walks from a place at once; absent, the documents before it are read and passed over.
    `identity` tells corpora apart as far as that can be seen without reading them.
    """

    name: str
    read: Callable[[], Iterator[str]]
    walk_files: Callable[[Place, int, int], Walk] | None = None
    identity: str = ""

    def walk(self, start: Place | None = None, *, rank: int = 0, world_size: int = 1) -> Walk:
        """The documents of `rank` from `start` on: the ranks share them without overlap and without rest."""
        start = start or Place()
        if self.walk_files is not None:
            yield from self.walk_files(start, rank, world_size)
            return
        count = 0
        for count, text in enumerate(self.read(), start=1):
            if count > start.offset and (count - 1) % world_size == rank:
                yield Place(offset=count, documents=count), text
        yield Place(offset=count, documents=count), None


def document_hash(text: str) -> int:
    """A hash of the text alone, uniform on [0, 2^64): the same on any machine, rank and run."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


@dataclasses.dataclass(frozen=True)
class Split:
    """Training, validation and the evaluator's part by document, by its hash.

    A text is held out where its hash lies below `threshold`, and the evaluator's alone from `evaluator_from` on. The rule knows neither
    seed nor order, so a teacher, an evaluator and a student trained apart hold out the same documents, and copies of a text always fall on
    the same side.
    """

    threshold: int
    evaluator_from: int = _HASHES

    def holds_out(self, text: str) -> bool:
        """Whether nobody is trained on the document."""
        return document_hash(text) < self.threshold

    def trains(self, text: str) -> bool:
        """Whether the models are trained on the document."""
        return self.threshold <= document_hash(text) < self.evaluator_from

    def evaluates(self, text: str) -> bool:
        """Whether the evaluator alone is trained on the document."""
        return document_hash(text) >= self.evaluator_from

    @classmethod
    def by_share(cls, share: float) -> "Split":
        """Hold out about `share` of the documents. Of a small corpus that may be none: see `fitted`."""
        return cls(int(share * _HASHES))

    @classmethod
    def fitted(cls, documents: Documents, share: float, evaluator_share: float = 0.0) -> "Split":
        """As `by_share`, and about `evaluator_share` of all documents for the evaluator, moved where needed so that each has at least one.

        Reads the corpus once, and keeps 8 bytes a document meanwhile.

        Raises:
            ValueError: the corpus is empty, or has fewer distinct documents than that takes.
        """
        hashes_N = np.unique(np.fromiter(map(document_hash, documents.read()), np.uint64))
        if not len(hashes_N):
            raise ValueError(f"{documents.name}: the corpus is empty, no document was found")
        if len(hashes_N) == 1:
            raise ValueError(
                f"{documents.name}: one distinct document was found, 2 are needed to hold one out for validation: in .txt a "
                "blank line or <|endoftext|> ends a document, in .jsonl each line is one"
            )
        held_out = cls(_between(cls.by_share(share).threshold, int(hashes_N[0]), int(hashes_N[-1])))
        if not evaluator_share:
            return held_out
        others_M = hashes_N[hashes_N >= held_out.threshold]
        if len(others_M) == 1:
            raise ValueError(
                f"{documents.name}: 2 distinct documents were found, 3 are needed to have one for the evaluator alone: give more, "
                "another evaluator, or data.evaluator_share=0"
            )
        wanted = int((1 - evaluator_share) * _HASHES)
        return dataclasses.replace(held_out, evaluator_from=_between(wanted, int(others_M[0]), int(others_M[-1])))


def _between(wanted: int, low: int, high: int) -> int:
    """A threshold that `low` lies below and `high` does not."""
    return min(max(wanted, low + 1), high)


def first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The first texts, up to the one with which their lengths reach `limit` characters."""
    total = 0
    for text in texts:
        yield text
        total += len(text)
        if total >= limit:
            return


# The corpus that needs no network and no file: the English documentation that every CPython carries, about 2 MB

_MIN_CHARACTERS = 200
# Not prose, not English, not the standard library, or not on every machine.
_SKIPPED = frozenset(
    ("__phello__", "__pycache__", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "turtledemo")
    + ("dist-packages", "site-packages", "test", "tests")
)


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
def builtin_documents() -> tuple[str, ...]:
    """`pydoc_data.topics` and the standard library's docstrings, one document a topic and a module.

    The order is fixed, no document is there twice, and none is shorter than 200 characters. The texts differ a little
    between versions of Python.
    """
    from pydoc_data.topics import topics  # the language reference as `help()` prints it

    stripped = map(str.strip, itertools.chain((topics[name] for name in sorted(topics)), _modules()))
    return tuple(dict.fromkeys(text for text in stripped if len(text) >= _MIN_CHARACTERS))


def builtin_corpus() -> Documents:
    """`builtin_documents` as a corpus."""
    return Documents("the documentation of Python", lambda: iter(builtin_documents()))
