"""Writes the folders that `shards` reads: rows in, shards out, no more than one shard in memory, and cut at any moment without loss.

After each shard `state.json` is replaced by one rename: the shards finished, the rows behind them that are in no finished shard, and the
caller's place. What a killed run wrote past that is made again, byte for byte. `index.json` comes last and makes the folder usable.
"""

import base64
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, Real

from di4c_lm.core.files import lock, remove_left_overs, write_bytes, write_json
from di4c_lm.data.records.shards import INDEX, Index, Shard, blake2b

STATE, LOCK = "state.json", "writing.lock"


def write_shard(folder: Path, name: str, rows: Real[np.ndarray, "n W"]) -> Shard:
    """Write the file `name` of `folder`, whole or not at all."""
    content = rows.tobytes()
    write_bytes(folder / name, content)
    return Shard(name=name, rows=len(rows), size=len(content), blake2b=blake2b(content).hexdigest())


@contextlib.contextmanager
def writing(folder: Path, index: Index, shard_rows: int) -> Iterator["ShardWriter"]:
    """The writer of `folder`, alone in it: another process that writes there is waited for. Arguments and errors as of `ShardWriter`."""
    with lock(folder / LOCK, f"writing shards to {folder}"):
        remove_left_overs(folder)
        yield ShardWriter(folder, index, shard_rows)


class ShardWriter:
    """One folder, from the first row to the index. `place` is where the caller resumes, None at the beginning and after the end.

    Args:
        folder: where the shards go.
        index: what the folder will say about itself; a folder that was begun with another `made_by` is refused.
        shard_rows: how many rows a full shard has.

    Raises `ValueError` for such a folder, and for one whose state is damaged.
    """

    def __init__(self, folder: Path, index: Index, shard_rows: int) -> None:
        self._folder, self._shard_rows = folder, shard_rows
        self._index = dataclasses.replace(index, made_by=json.loads(json.dumps(index.made_by)))
        self.shards: list[Shard] = []  # finished so far
        self.beside: list[Shard] = []  # what stands beside them, if anything
        self._behind = [np.empty((0, index.width), index.dtype)]  # the rows behind them
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
            self.shards = [Shard(**shard) for shard in state["shards"]]
            self.beside = [Shard(**shard) for shard in state.get("beside", ())]
            rows = np.frombuffer(base64.b64decode(state["rows"]), self._index.dtype)
            self._behind = [rows.reshape(-1, self._index.width)]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: damaged: {error}: begin again in an empty folder") from error
        self._check(made_by)
        for shard in (*self.shards, *self.beside):
            file = self._folder / shard.name
            if not file.exists() or file.stat().st_size != shard.size:
                raise ValueError(
                    f"{file}: expected {shard.size} bytes from an earlier run: begin again in an empty folder"
                )

    def _check(self, made_by: dict[str, Any]) -> None:
        differs = [key for key, here in self._index.made_by.items() if made_by.get(key) != here]
        if differs:
            said = "; ".join(f"{key} {made_by.get(key)}, now it is {self._index.made_by[key]}" for key in differs)
            raise ValueError(
                f"{self._folder} holds shards made with {said}: resume with the same, or begin in an empty folder"
            )

    @property
    def rows(self) -> int:
        """Written so far."""
        return sum(shard.rows for shard in self.shards) + sum(map(len, self._behind))

    def append(self, rows: Integer[np.ndarray, "n W"]) -> bool:
        """Take rows; whether a shard was finished by it, so that now is the time to `commit`."""
        self._behind.append(rows.astype(self._index.dtype))
        if sum(map(len, self._behind)) < self._shard_rows:
            return False
        together = np.concatenate(self._behind)
        full = len(together) // self._shard_rows * self._shard_rows
        for start in range(0, full, self._shard_rows):
            self._finish(together[start : start + self._shard_rows])
        self._behind = [together[full:].copy()]
        return True

    def append_with(self, rows: Integer[np.ndarray, "n W"], name: str, values: Real[np.ndarray, "M K"]) -> None:
        """Take rows as a shard of their own, with a file of values, `<name>_<number>.bin`, beside it: the time to `commit`."""
        self.beside.append(write_shard(self._folder, f"{name}_{len(self.shards):05d}.bin", values))
        self._finish(rows.astype(self._index.dtype))

    def _finish(self, rows: Integer[np.ndarray, "n W"]) -> None:
        self.shards.append(write_shard(self._folder, f"train_{len(self.shards):05d}.bin", rows))

    def commit(self, place: dict[str, Any]) -> None:
        """Make the rows until now, the last of them appended by the call that finished a shard, the ones to resume behind."""
        rows = base64.b64encode(np.concatenate(self._behind).tobytes()).decode()
        shards, beside = ([dataclasses.asdict(shard) for shard in side] for side in (self.shards, self.beside))
        state = {"made_by": self._index.made_by, "shards": shards, "rows": rows, "place": place, "beside": beside}
        write_json(self._folder / STATE, state)

    def close(self, counts: dict[str, int], validation: Shard | None = None) -> Index:
        """End the last shard and write the index, which ends the state."""
        if len(rest := np.concatenate(self._behind)):
            self._finish(rest)
        sides = {"train": tuple(self.shards), "beside": tuple(self.beside), "validation": validation}
        index = dataclasses.replace(self._index, counts=counts, **sides)
        index.write(self._folder)
        (self._folder / STATE).unlink(missing_ok=True)
        return index
