"""Everything that a resumed run needs, registered in one place, and saved so that a kill at any moment loses nothing.

A checkpoint is a folder `step_00000500` of one safetensors and one JSON file a rank, and a manifest with their sizes and checksums. It is
written as `step_00000500.tmp` and made current by one rename; the newest folder that is whole is the current one. Tensors are kept by
parameter name, so that another number of ranks, another ZeRO stage or another dtype can read them. All ranks must see the same folder.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from di4c_lm.core.files import damage, entry_of, read_manifest, save_tensors, sync, write_manifest
from di4c_lm.core.terminal import RunError
from di4c_lm.training.distributed import barrier, gather_objects, is_main, rank, world_size
from di4c_lm.training.partition import Flats, Partition, Piece

logger = logging.getLogger(__name__)

_NAME = re.compile(r"step_\d{8}")


def snapshots(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, whole or not."""
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []


def check_resume(folder: Path, how: Literal["auto", "never", "must"]) -> None:
    """Raise `ValueError` if `how` is `never` and there are checkpoints in `folder`, or `must` and there are none."""
    found = sorted(snapshots(folder))
    if how == "never" and found:
        raise ValueError(
            f"train.resume must be auto or must where {folder} holds {found[-1].name}, got 'never'; or choose another run.dir"
        )
    if how == "must" and not found:
        raise ValueError(f"train.resume must be auto or never where {folder} holds no checkpoint, got 'must'")


class CheckpointError(RunError):
    """A checkpoint could not be written, or none that exists can be read."""


@runtime_checkable
class Stateful(Protocol):
    """State as plain JSON values."""

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        ...


@runtime_checkable
class Sharded(Stateful, Protocol):
    """State with tensors laid out like the master weights; these are filled in place before `load_state_dict`."""

    def flats(self) -> dict[str, Flats]:
        """Tensors by kind."""
        ...


@dataclass(kw_only=True)
class Progress:
    """How far the run is. `signal`: the signal that ended it early, 0 if none did (not saved)."""

    step: int = 0  # optimiser steps, skipped ones included
    skipped: int = 0  # steps whose loss or gradient was not finite
    bad_in_a_row: int = 0
    sequences: int = 0
    tokens: int = 0
    signal: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "signal"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for key in self.state_dict():
            setattr(self, key, int(state[key]))


class Checkpoint:
    """The registry of run state: what is not named in `__init__` is lost on resume."""

    def __init__(
        self,
        folder: Path,
        *,
        partition: Partition,
        engine: Sharded,
        ema: Sharded,
        batches: Stateful,
        progress: Progress,
        keep: int,
        adaptive: Stateful | None = None,
    ) -> None:
        self._folder = folder
        self._partition = partition
        self._sharded = {"engine": engine, "ema": ema}
        self._stateful: dict[str, Stateful] = {**self._sharded, "batches": batches, "progress": progress}
        if adaptive is not None:
            self._stateful["adaptive"] = adaptive
        self._progress = progress
        self._keep = keep
        self._saved_step: int | None = None

    def save(self) -> None:
        """Write the state after `progress.step` and make it current, unless it is already. All ranks must call it.

        Errors: `CheckpointError` on all ranks if any could not write (a full disk); what was current before stays current and whole.
        """
        if self._saved_step == self._progress.step:
            return
        final = self._folder / f"step_{self._progress.step:08d}"
        new = final.with_name(f"{final.name}.tmp")
        _together(lambda: self._make_room(new) if is_main() else None, f"making {new}")
        try:
            files = _together(lambda: self._write_rank(new), f"saving {final}")
            _together(lambda: self._commit(new, final, files) if is_main() else None, f"saving {final}")
        except CheckpointError:
            if is_main():
                shutil.rmtree(new, ignore_errors=True)
            raise
        self._saved_step = self._progress.step
        if is_main():
            self._prune()
        barrier()

    def resume(self, how: Literal["auto", "never", "must"]) -> bool:
        """Go on from the newest checkpoint that is whole; True if there is one. All ranks must call it.

        Errors: `ValueError` if `how` is `never` and there are checkpoints, `must` and there are none, or the checkpoint is of another
        network; `CheckpointError` if there are some, and none is whole.
        """
        found = sorted(snapshots(self._folder), reverse=True)
        found = gather_objects(found)[0]
        check_resume(self._folder, how)
        for path in found:
            problem = _first(gather_objects(damage(path, share=(rank(), world_size()))))
            if problem is None:
                self._load(path)
                logger.info("resumed from %s", path)
                return True
            logger.warning("%s cannot be used (%s); trying the one before it", path, problem)
        if found:
            raise CheckpointError(f"none of the {len(found)} checkpoints in {self._folder} is whole")
        return False

    def adopt_optimizer(self, folder: Path) -> None:
        """Take the optimiser's moments, and its count of updates, from the newest checkpoint in another run's `folder`; not the weights.

        All ranks must call it. Errors: `ValueError` where there is none that is whole, or it is of another network.
        """
        whole = [path for path in sorted(snapshots(folder), reverse=True) if damage(path) is None]
        path = _first(gather_objects(str(whole[0]) if whole else None))
        if path is None:
            raise ValueError(f"train.reset_optimizer must be true where {folder} holds no whole checkpoint, got false")
        newest = Path(path)
        manifest = read_manifest(newest)
        _check_shapes(newest, manifest["parameters"], self._partition)
        engine = self._sharded["engine"]
        moments = {kind: flats for kind, flats in engine.flats().items() if kind != "master"}
        _fill(newest, int(manifest["world_size"]), self._partition, moments)
        engine.load_state_dict(json.loads((newest / "rank_00000.json").read_bytes())["engine"])
        logger.info("the optimiser goes on from %s", newest)

    def _make_room(self, new: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left_over in self._folder.glob("step_*.tmp"):
            shutil.rmtree(left_over)
        new.mkdir()

    def _write_rank(self, new: Path) -> dict[str, dict[str, Any]]:
        """This rank's files, and their sizes and checksums by name."""
        tensors: dict[str, Tensor] = {"rng/cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["rng/cuda"] = torch.cuda.get_rng_state()
        if is_main() or not self._partition.replicated:
            for sharded in self._sharded.values():
                for kind, flats in sharded.flats().items():
                    for piece, value in self._partition.named(flats):
                        tensors[f"{kind}/{piece.start}/{piece.name}"] = value.detach().cpu().clone()
        states = {name: stateful.state_dict() for name, stateful in self._stateful.items()}
        weights, values = new / f"rank_{rank():05d}.safetensors", new / f"rank_{rank():05d}.json"
        save_tensors(weights, tensors)
        values.write_text(json.dumps(states), encoding="utf-8")
        for path in (weights, values):
            sync(path)
        return {path.name: entry_of(path) for path in (weights, values)}

    def _commit(self, new: Path, final: Path, files: list[dict[str, dict[str, Any]]]) -> None:
        facts = {
            "step": self._progress.step,
            "world_size": world_size(),
            "parameters": {name: list(shape) for name, shape in self._partition.shapes.items()},
        }
        write_manifest(new, facts, {name: entry for of_rank in files for name, entry in of_rank.items()})
        if final.exists():  # a damaged one that was passed over on resume
            shutil.rmtree(final)
        os.rename(new, final)
        sync(self._folder)

    def _prune(self) -> None:
        for old in sorted(snapshots(self._folder))[: -self._keep]:
            doomed = old.with_name(f"{old.name}.tmp")  # so that a kill while deleting leaves no half of a checkpoint
            os.rename(old, doomed)
            shutil.rmtree(doomed)

    def _load(self, path: Path) -> None:
        manifest = read_manifest(path)
        _check_shapes(path, manifest["parameters"], self._partition)
        saved_ranks = int(manifest["world_size"])
        wanted = {kind: flats for sharded in self._sharded.values() for kind, flats in sharded.flats().items()}
        _fill(path, saved_ranks, self._partition, wanted)
        every = [json.loads((path / f"rank_{r:05d}.json").read_bytes()) for r in range(saved_ranks)]
        own = every[rank()] if saved_ranks == world_size() else every[0]
        if saved_ranks != world_size() and any(states["batches"] != own["batches"] for states in every):
            raise ValueError(
                f"{path} was saved by {saved_ranks} ranks that each had a data position of their own: "
                f"resume it with {saved_ranks} ranks, not {world_size()}"
            )
        for name, stateful in self._stateful.items():
            stateful.load_state_dict(own[name])
        if saved_ranks == world_size():
            _restore_rng(path / f"rank_{rank():05d}.safetensors")
        self._saved_step = self._progress.step


def _together(work: Any, what: str) -> list[Any]:
    """`work()` on every rank, and what each returned; `CheckpointError` on all of them if one met an `OSError`."""
    result, failure = None, None
    try:
        result = work()
    except OSError as error:
        failure = f"rank {rank()}: {error}"
    failure = _first(gather_objects(failure))
    if failure is not None:
        raise CheckpointError(f"{what} failed ({failure}); the checkpoint before it is untouched")
    return gather_objects(result)


def _first(items: list[str | None]) -> str | None:
    return next((item for item in items if item is not None), None)


def _check_shapes(path: Path, saved: dict[str, list[int]], partition: Partition) -> None:
    for name in sorted(saved.keys() | partition.shapes.keys()):
        there, here = saved.get(name), partition.shapes.get(name)
        if there is None or here is None or tuple(there) != here:
            raise ValueError(
                f"{path} is of another network: {name} has shape {there} there, {here} here (None: absent)"
            )


def _fill(path: Path, saved_ranks: int, partition: Partition, wanted: dict[str, Flats]) -> None:
    """Copy every wanted piece from whichever ranks' files hold it."""
    from safetensors import safe_open

    pieces: dict[tuple[str, str], list[Piece]] = {}
    for kind, flats in wanted.items():
        for piece, _ in partition.named(flats):
            pieces.setdefault((kind, piece.name), []).append(piece)
    missing = {(kind, piece): piece.numel for (kind, _), found in pieces.items() for piece in found}
    for r in range(saved_ranks):
        with safe_open(path / f"rank_{r:05d}.safetensors", framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                kind, start, name = key.split("/", 2) if key.count("/") > 1 else (key, "0", "")
                if (kind, name) not in pieces:
                    continue
                saved = file.get_slice(key)
                first, last = int(start), int(start) + saved.get_shape()[0]
                for piece in pieces[kind, name]:
                    low, high = max(first, piece.start), min(last, piece.start + piece.numel)
                    if low < high:
                        target = piece.of(wanted[kind])[low - piece.start : high - piece.start]
                        target.copy_(saved[low - first : high - first])
                        missing[kind, piece] -= high - low
    lost = [f"{kind} of {piece.name}" for (kind, piece), count in missing.items() if count != 0]
    if lost:
        raise ValueError(f"{path} lacks elements of {len(lost)} tensors, the first is {lost[0]}")


def _restore_rng(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        torch.set_rng_state(file.get_tensor("rng/cpu"))
        if torch.cuda.is_available() and "rng/cuda" in file.keys():  # noqa: SIM118 (not a dict)
            torch.cuda.set_rng_state(file.get_tensor("rng/cuda"))
