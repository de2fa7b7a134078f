"""Writes the folders that `shards` reads: rows in, shards out, in memory that does not grow, and cut at any moment without loss.

After each shard `state.json` is replaced by one rename: the shards finished, the rows behind them that are in no finished shard, and the
caller's place. What a killed run wrote past that is made again, byte for byte. `index.json` comes last and makes the folder usable.
"""

import base64
import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from di4c_lm.core.files import lock, remove_left_overs, write_json
from di4c_lm.data.records.shards import INDEX, Index, Shard, blake2b

STATE, LOCK = "state.json", "writing.lock"


def row_dtype(num_states: int) -> "np.dtype[Any]":
    """Little-endian uint16, or uint32 for more than 65,536 states."""
    return np.dtype("<u2" if num_states <= 1 << 16 else "<u4")


class _OpenShard:
    """A shard that is being filled under a temporary name; its checksum grows with it."""

    def __init__(self, folder: Path, number: int) -> None:
        self.rows = 0
        self._size = 0
        self._path = folder / f"train_{number:05d}.bin"
        self._digest = blake2b()
        self._file = open(folder / f"{self._path.name}.tmp", "wb")  # noqa: SIM115 (closed by finish or abandon)

    def append(self, rows: Integer[np.ndarray, "n W"]) -> None:
        content = rows.tobytes()
        self._file.write(content)
        self._digest.update(content)
        self.rows += len(rows)
        self._size += len(content)

    def finish(self) -> Shard:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self._path)
        return Shard(name=self._path.name, rows=self.rows, size=self._size, blake2b=self._digest.hexdigest())

    def abandon(self) -> None:
        self._file.close()
        os.unlink(self._file.name)


class ShardWriter:
    """One folder, from the first row to the index. `place` is where the caller resumes, None at the beginning and after the end.

    Args:
        folder: where the shards go; another process that writes there is waited for (see `writing`).
        dtype, width, shard_rows: of the rows, and how many a full shard has.
        made_by: what the rows are made from, plain values; a folder that was begun with others is refused.

    Raises `ValueError` for such a folder, and for one whose state is damaged.
    """

    def __init__(
        self, folder: Path, *, dtype: "np.dtype[Any]", width: int, shard_rows: int, made_by: dict[str, Any]
    ) -> None:
        self._folder, self._dtype, self._width, self._shard_rows = folder, dtype, width, shard_rows
        self._made_by: dict[str, Any] = json.loads(json.dumps(made_by))
        self._shards: list[Shard] = []
        self._open: _OpenShard | None = None
        self._behind_W = np.empty((0, width), dtype)  # the rows behind the newest finished shard
        self.place: dict[str, Any] | None = None
        self.finished: Index | None = None
        if (folder / INDEX).is_file():
            self.finished = Index.read(folder)
            self._check(self.finished.made_by)
        elif (folder / STATE).exists():
            self._resume(folder / STATE)

    def _resume(self, path: Path) -> None:
        try:
            state = json.loads(path.read_bytes())
            made_by, self.place = state["made_by"], state["place"]
            self._shards = [Shard(**shard) for shard in state["shards"]]
            rows = np.frombuffer(base64.b64decode(state["rows"]), self._dtype).reshape(-1, self._width)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged: {error}: begin again in an empty folder") from error
        self._check(made_by)
        for shard in self._shards:
            file = self._folder / shard.name
            if not file.exists() or file.stat().st_size != shard.size:
                raise ValueError(
                    f"{file}: expected {shard.size} bytes from an earlier run: begin again in an empty folder"
                )
        self._behind_W = rows

    def _check(self, made_by: dict[str, Any]) -> None:
        differs = [key for key, here in self._made_by.items() if made_by.get(key) != here]
        if differs:
            said = "; ".join(f"{key} {made_by.get(key)}, now it is {self._made_by[key]}" for key in differs)
            raise ValueError(
                f"{self._folder} holds shards made with {said}: resume with the same, or begin in an empty folder"
            )

    @property
    def rows(self) -> int:
        """Written so far."""
        return sum(shard.rows for shard in self._shards) + (self._open.rows if self._open else len(self._behind_W))

    @property
    def shards(self) -> tuple[Shard, ...]:
        """Finished so far."""
        return tuple(self._shards)

    def _opened(self) -> _OpenShard:
        if self._open is None:
            for left_over in self._folder.glob("*.tmp"):
                left_over.unlink()
            self._open = _OpenShard(self._folder, len(self._shards))
            self._open.append(self._behind_W)
        return self._open

    def append(self, rows: Integer[np.ndarray, "n W"]) -> bool:
        """Write rows; whether a shard was finished by it, so that now is the time to `commit`."""
        rows, shard, before = rows.astype(self._dtype), self._opened(), len(self._shards)
        while shard.rows + len(rows) >= self._shard_rows:
            room = self._shard_rows - shard.rows
            shard.append(rows[:room])
            rows = rows[room:]
            self._shards.append(shard.finish())
            self._open = shard = _OpenShard(self._folder, len(self._shards))
            self._behind_W = rows
        shard.append(rows)
        return len(self._shards) > before

    def commit(self, place: dict[str, Any]) -> None:
        """Make the rows until now, the last of them appended by the call that finished a shard, the ones to resume behind."""
        rows = base64.b64encode(self._behind_W.tobytes()).decode()
        shards = [dataclasses.asdict(shard) for shard in self._shards]
        write_json(self._folder / STATE, {"made_by": self._made_by, "shards": shards, "rows": rows, "place": place})

    def close(self) -> tuple[Shard, ...]:
        """End the last shard. Returns all."""
        shard = self._opened()
        if shard.rows:
            self._shards.append(shard.finish())
        else:
            shard.abandon()
        return tuple(self._shards)

    def publish(self, index: Index) -> None:
        """Write the index, which ends the state."""
        index.write(self._folder)
        (self._folder / STATE).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Alone in `folder`, which is made where it is absent: another process that writes there is waited for."""
    with lock(folder / LOCK, f"writing shards to {folder}"):
        remove_left_overs(folder)
        yield
