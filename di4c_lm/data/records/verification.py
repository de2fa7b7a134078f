"""Whether shards are what their index says: present and whole by their sizes, unchanged by their checksums.

Sizes are looked at on every opening, one `stat` a shard. Reading all the files for every rank and every start could take hours. So a
checksum that has been read once is remembered with the file's size and time of change, and holds as long as these do.
"""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from di4c_lm.data.records.shards import Index, Shard, file_checksum, replace_file

logger = logging.getLogger(__name__)
How = Literal["once", "always", "size"]
Stamp = tuple[int, int]  # bytes, nanoseconds of the last change


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


class _Memory:
    """Checksums that were read, by file and stamp."""

    def __init__(self, folder: Path, cache_dir: Path) -> None:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._path = cache_dir / "verified_shards" / f"{name}.json"
        try:
            self._known = json.loads(self._path.read_text())
        except (OSError, ValueError):
            self._known = {}

    def recall(self, name: str, stamp: Stamp) -> str | None:
        size, changed, checksum = self._known.get(name, (None, None, None))
        return checksum if (size, changed) == stamp else None

    def keep(self, found: dict[str, tuple[Stamp, str]]) -> None:
        self._known |= {name: [*stamp, checksum] for name, (stamp, checksum) in found.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        replace_file(temporary, json.dumps(self._known).encode())
        os.replace(temporary, self._path)


def _problem(path: Path, shard: Shard, stamp: Stamp | None, checksum: str | None) -> str | None:
    expected = f"expected {shard.size} bytes with BLAKE2b {shard.blake2b}"
    if stamp is None:
        return f"{path}: missing: {expected}, found no file"
    if stamp[0] != shard.size:
        kind = "empty" if stamp[0] == 0 else "truncated" if stamp[0] < shard.size else "too long"
        return f"{path}: {kind}: {expected}, found {stamp[0]} bytes with BLAKE2b {file_checksum(path)}"
    if checksum is not None and checksum != shard.blake2b:
        return f"{path}: corrupt: {expected}, found {stamp[0]} bytes with BLAKE2b {checksum}"
    return None


def find_damage(folder: Path, index: Index, how: How, cache_dir: Path) -> dict[str, str]:
    """What is wrong with which of the index' files, training and validation: a message by name, none where all is well.

    `how`: "size" reads no checksum, "once" those that no earlier call has read (remembered in `cache_dir`), "always" all; on all
    cores.
    """
    shards = {shard.name: shard for shard in (*index.train, index.validation)}
    stamps = {name: _stamp(folder / name) for name in shards}
    memory = _Memory(folder, cache_dir)
    known: dict[str, str | None] = {}
    unread: dict[str, Stamp] = {}
    for name, stamp in stamps.items():
        whole = stamp is not None and stamp[0] == shards[name].size
        known[name] = memory.recall(name, stamp) if stamp is not None and how == "once" else None
        if stamp is not None and whole and how != "size" and known[name] is None:
            unread[name] = stamp
    if unread:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read = pool.map(file_checksum, [folder / name for name in unread])
            found = list(tqdm(read, desc="checksums", total=len(unread), unit=" shards", delay=2, disable=None))
        known |= dict(zip(unread, found, strict=True))
        memory.keep({name: (stamp, checksum) for (name, stamp), checksum in zip(unread.items(), found, strict=True)})
    problems = {name: _problem(folder / name, shards[name], stamps[name], known[name]) for name in shards}
    return {name: problem for name, problem in problems.items() if problem is not None}


def usable_shards(folder: Path, index: Index, how: How, cache_dir: Path, *, skip_bad: bool) -> list[str]:
    """The names of damaged training shards, to go on without, counted in the log.

    Raises `ValueError` that names each damaged file with the checksum expected and found, unless `skip_bad` and the validation is whole.
    """
    damage = find_damage(folder, index, how, cache_dir)
    if not damage:
        return []
    if not skip_bad or index.validation.name in damage:
        raise ValueError(
            "\n".join(damage.values())
            + f"\n{len(damage)} of {len(index.train) + 1} files cannot be used: put them back, prepare them again in an empty folder, "
            "or go on without the training shards among them by data.skip_bad=true"
        )
    for problem in damage.values():
        logger.warning("left out: %s", problem)
    lost = sum(shard.sequences for shard in index.train if shard.name in damage)
    logger.warning(
        "%s: going on without %d of %d shards, %d of %d sequences",
        folder,
        len(damage),
        len(index.train),
        lost,
        index.sequences,
    )
    return list(damage)
