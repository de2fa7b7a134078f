"""What an evaluator said of documents, kept in the cache: a document that is read again costs nothing."""

import hashlib
import logging
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from di4c_lm.core.cache import key_of
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.perplexity import Document, EosRule

_log = logging.getLogger(__name__)
_WAIT_S = 30.0  # for another process that writes
_AT_ONCE = 500  # keys in one question


@final
class KeptScores:
    """Nats and numbers of scored tokens of documents under one evaluator and one rule, in a file of the cache.

    A file that cannot be read or written is no error: it is warned of, and nothing is kept.
    """

    def __init__(self, cache: Path, evaluator: Evaluator, eos: EosRule) -> None:
        parameter = next(evaluator.model.parameters())
        key = key_of(evaluator.weights, str(parameter.dtype), parameter.device.type)
        self._path = cache / "scores" / f"{key}.sqlite"
        self._rule = f"{eos} {evaluator.tokenizer.eos_token_id}"

    @classmethod
    def of(cls, cache: Path | None, evaluator: Evaluator, eos: EosRule) -> "KeptScores | None":
        """None without a cache, and for an evaluator whose weights lie in no folder."""
        return None if cache is None or evaluator.weights is None else cls(cache, evaluator, eos)

    def find(self, documents: Sequence[Document]) -> Float[ndarray, "N 2"]:
        """Nats and tokens of each document, NaN where they are not known."""
        keys = [self._key(document) for document in documents]
        found: dict[bytes, tuple[float, float]] = {}
        if self._path.is_file():
            try:
                with closing(self._open()) as table:
                    for start in range(0, len(keys), _AT_ONCE):
                        part = keys[start : start + _AT_ONCE]
                        marks = ",".join("?" * len(part))
                        rows = table.execute(f"SELECT key, nll, tokens FROM scores WHERE key IN ({marks})", part)
                        found |= {key: (nll, tokens) for key, nll, tokens in rows}
            except (sqlite3.Error, OSError) as error:
                self._warn(error)
        return np.array([found.get(key, (np.nan, np.nan)) for key in keys], dtype=np.float64).reshape(-1, 2)

    def keep(self, documents: Sequence[Document], scores: Float[ndarray, "N 2"]) -> None:
        """Add what is known of these documents."""
        rows = [(self._key(one), *map(float, score)) for one, score in zip(documents, scores, strict=True)]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as table, table:
                table.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, nll REAL, tokens REAL)")
                table.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            self._warn(error)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_WAIT_S)

    def _key(self, document: Document) -> bytes:
        ids = np.asarray(document.ids, dtype=np.int64).tobytes()
        return hashlib.sha256(f"{self._rule} {document.context} ".encode() + ids).digest()

    def _warn(self, error: Exception) -> None:
        _log.warning("%s: scores are not kept: %s", self._path, error)
