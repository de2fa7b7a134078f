"""A corpus before it is tokenised: a named series of texts that can be read again, and its split by document."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator

_HASHES = 1 << 64


@dataclasses.dataclass(frozen=True)
class Documents:
    """A corpus: each `read()` goes through all its documents again, in the same order. Errors and logs say `name`."""

    name: str
    read: Callable[[], Iterator[str]]


def document_hash(text: str) -> int:
    """A hash of the text alone, uniform on [0, 2^64): the same on any machine, rank and run."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


@dataclasses.dataclass(frozen=True)
class Split:
    """Train and held-out by document: a text is held out where its hash lies below `threshold`.

    The rule knows neither seed nor order, so a teacher, a judge and a student trained apart hold out the same
    documents, and copies of a text always fall on the same side.
    """

    threshold: int

    def holds_out(self, text: str) -> bool:
        return document_hash(text) < self.threshold

    @classmethod
    def by_share(cls, share: float) -> "Split":
        """Hold out about `share` of the documents. Of a small corpus that may be none: see `fitted`."""
        return cls(int(share * _HASHES))

    @classmethod
    def fitted(cls, documents: Documents, share: float) -> "Split":
        """As `by_share`, moved where needed so that at least one document lies on either side. Reads the corpus once.

        Raises:
            ValueError: the corpus is empty, or has only one distinct document.
        """
        low, high = _HASHES, -1
        for text in documents.read():
            value = document_hash(text)
            low, high = min(low, value), max(high, value)
        if high < 0:
            raise ValueError(f"{documents.name}: the corpus is empty, no document was found")
        if low == high:
            raise ValueError(
                f"{documents.name}: one distinct document was found, 2 are needed to hold one out for validation"
            )
        return cls(min(max(cls.by_share(share).threshold, low + 1), high))


def train_side(documents: Documents, split: Split) -> Iterator[str]:
    return (text for text in documents.read() if not split.holds_out(text))


def held_out_side(documents: Documents, split: Split) -> Iterator[str]:
    return (text for text in documents.read() if split.holds_out(text))


def first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The first texts, up to the one with which their lengths reach `limit` characters."""
    total = 0
    for text in texts:
        yield text
        total += len(text)
        if total >= limit:
            return
