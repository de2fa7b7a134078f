"""What is made once and kept: an entry is a folder under `<root>/<kind>/<key>`, whole or absent."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, final, runtime_checkable

from di4c_lm.core.files import LockedError, damage, lock, settle, sync, write_manifest

logger = logging.getLogger(__name__)

WORK = "work"
T = TypeVar("T")
_verified: set[Any] = set()  # large files whose checksums this process has read


def key_of(*parts: Any) -> str:
    """Sixteen hex digits that stand for plain values: an entry's key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@runtime_checkable
class Ranks(Protocol):
    """The processes that share a run."""

    @property
    def rank(self) -> int:
        """Of this process in the run."""
        ...

    @property
    def local_rank(self) -> int:
        """Of this process on its machine."""
        ...

    def gather(self, item: Any) -> list[Any]:
        """Each rank's item, in order of rank, on every rank."""
        ...


def everywhere(ranks: Ranks, work: Callable[[], T]) -> list[T]:
    """`work()`, and what it returned on each rank. An error of one is raised on all, as `ValueError` on the others."""
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    outcomes = ranks.gather((result, None if error is None else str(error)))
    if error is not None:
        raise error
    for rank, (_, message) in enumerate(outcomes):
        if message is not None:
            raise ValueError(f"rank {rank}: {message}")
    return [result for result, _ in outcomes]


@final
class Alone:
    """A run of one process."""

    rank = local_rank = 0

    def gather(self, item: Any) -> list[Any]:
        """The item alone."""
        return [item]


@final
class Cache:
    """A folder of entries, shared by runs and users. Each entry's manifest holds the size and SHA-256 of each of its files.

    `ranks` that wait for another run gather every `round_s` seconds, so that no collective of theirs waits longer.
    """

    def __init__(self, root: Path, ranks: Ranks | None = None, *, round_s: float = 60.0) -> None:
        self.root = root
        self._round_s = round_s
        self._ranks = ranks or Alone()

    def path(self, kind: str, key: str) -> Path:
        """Where an entry lies, or will."""
        return self.root / kind / key

    def entry(self, kind: str, key: str, make: Callable[[Path], object], *, together: bool = False) -> Path:
        """The folder of an entry, made first where it is absent. All ranks call it, and find the entry whole afterwards.

        An entry that is half-written or damaged is named in a warning, removed and made again: sizes are compared each time, checksums
        of small files too, those of large files once a process. Another process that makes the same entry is waited for, and what it
        made is used.

        Args:
            kind: such as "teachers"; names the folder of all entries of the kind.
            key: stands for all that shapes the entry, such as `key_of(...)`.
            make: fills the folder that it is given, on the first rank of each machine. What it puts under `folder / WORK` is no part of
                the entry, and is there again for the next try if this one is killed or raises: a training can resume from it.
            together: `make` is called on all ranks, for work that they share; then the first rank of the run writes into the folder.

        Raises `ValueError` that names the folder where the cache cannot be read or written, and whatever `make` raises.
        """
        path = self.path(kind, key)
        if together:
            with contextlib.ExitStack() as held:
                while (
                    state := everywhere(self._ranks, lambda: self._look(path, held) if self._ranks.rank == 0 else "")[0]
                ) == "waiting":
                    pass
                if state == "absent":
                    make(self._making(path))
                    everywhere(self._ranks, lambda: self._finish(path) if self._ranks.rank == 0 else "")
        else:
            while "waiting" in everywhere(
                self._ranks, lambda: self._made(path, make) if self._ranks.local_rank == 0 else ""
            ):
                pass
        return path

    def _look(self, path: Path, held: contextlib.ExitStack) -> str:
        """ "whole"; "absent", with the entry's lock taken and an empty folder to fill; or "waiting" for another process."""
        with _named(path):
            if path.exists() and damage(path, verified=_verified) is None:
                return "whole"
            try:
                held.enter_context(lock(path.with_name(f"{path.name}.lock"), f"making {path}", wait_s=self._round_s))
            except LockedError:
                return "waiting"
            if path.exists():  # by now, perhaps, another process has made it
                problem = damage(path, verified=_verified)
                if problem is None:
                    return "whole"
                logger.warning("%s: damaged (%s): it is removed and made again", path, problem)
                _remove(path)
            folder = self._making(path)
            folder.mkdir(exist_ok=True)
            for left_over in folder.iterdir():
                if left_over.name != WORK:
                    _remove(left_over)
            return "absent"

    def _made(self, path: Path, make: Callable[[Path], object]) -> str:
        with contextlib.ExitStack() as held:
            state = self._look(path, held)
            if state == "absent":
                make(self._making(path))
                state = self._finish(path)
        return state

    @staticmethod
    def _making(path: Path) -> Path:
        return path.with_name(f"{path.name}.making")

    def _finish(self, path: Path) -> str:
        folder = self._making(path)
        with _named(path):
            shutil.rmtree(folder / WORK, ignore_errors=True)
            settle(folder)
            write_manifest(folder, {})
            os.rename(folder, path)
            sync(path.parent)
        return "whole"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"the cache entry {path} cannot be read or written: {error.strerror or error}: choose another place by "
            "run.cache_dir=<folder> or $DI4C_CACHE"
        ) from error
