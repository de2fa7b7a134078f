"""Checkpoints: what is registered comes back, and no accident leaves less than the one before."""

import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.training import run_state
from di4c_lm.training.partition import Partition, Piece
from di4c_lm.training.run_state import Checkpoint, CheckpointError, Progress


class Numbers:
    """A state of plain values, and of tensors laid out like `partition`."""

    def __init__(self, partition: Partition, kind: str, value: float) -> None:
        self.kind, self.value = kind, value
        self.tensors = [torch.full_like(flat, value) for flat in partition.flats]

    def flats(self) -> dict[str, list[torch.Tensor]]:
        return {self.kind: self.tensors}

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


def make_partition(shapes: dict[str, tuple[int, ...]] | None = None) -> Partition:
    shapes = shapes or {"a.weight": (2, 3), "b": (5,)}
    pieces, offset = [], 0
    for name, shape in shapes.items():
        numel = torch.Size(shape).numel()
        pieces.append(Piece(name=name, start=0, numel=numel, flat=0, offset=offset))
        offset += numel
    return Partition(flats=[torch.zeros(offset)], pieces=pieces, shapes=shapes, replicated=True)


class Registry:
    """A checkpoint folder and everything that is registered in it, with recognisable values."""

    def __init__(self, folder: Path, value: float = 0.0, keep: int = 2, partition: Partition | None = None) -> None:
        partition = partition or make_partition()
        self.engine, self.ema = Numbers(partition, "master", value), Numbers(partition, "ema", value)
        self.batches, self.progress = Numbers(partition, "", value), Progress()
        self.checkpoint = Checkpoint(
            folder,
            partition=partition,
            engine=self.engine,
            ema=self.ema,
            batches=self.batches,
            progress=self.progress,
            keep=keep,
        )

    def save(self, step: int) -> None:
        self.progress.step = step
        for state in (self.engine, self.ema, self.batches):
            state.value = float(step)
            for tensor in state.tensors:
                tensor.copy_(step + torch.arange(tensor.numel()))
        self.checkpoint.save()

    def check(self, step: int) -> None:
        assert self.progress.step == step
        for state in (self.engine, self.ema, self.batches):
            assert state.value == float(step)
        for state in (self.engine, self.ema):
            for tensor in state.tensors:
                assert torch.equal(tensor, step + torch.arange(tensor.numel(), dtype=torch.float32))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_registered_comes_back(tmp_path):
    Registry(tmp_path).save(7)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    Registry(tmp_path, keep=1).save(9)
    torch.manual_seed(2)
    resumed = Registry(tmp_path)
    assert resumed.checkpoint.resume("must")
    resumed.check(9)
    assert torch.equal(torch.get_rng_state(), state)
    assert names(tmp_path) == ["step_00000009"]


def test_progress_keeps_all_but_the_signal():
    progress = Progress(step=3, skipped=2, bad_in_a_row=1, sequences=24, tokens=99, signal=15)
    again = Progress()
    again.load_state_dict(json.loads(json.dumps(progress.state_dict())))
    assert again == dataclasses.replace(progress, signal=0)


def test_the_newest_are_kept(tmp_path):
    registry = Registry(tmp_path, keep=2)
    for step in (5, 10, 15, 100):
        registry.save(step)
    assert names(tmp_path) == ["step_00000015", "step_00000100"]


def test_never_and_must(tmp_path):
    assert not Registry(tmp_path).checkpoint.resume("auto")
    assert not Registry(tmp_path).checkpoint.resume("never")
    with pytest.raises(ValueError, match="holds no checkpoint, got 'must'"):
        Registry(tmp_path / "absent").checkpoint.resume("must")
    Registry(tmp_path).save(1)
    with pytest.raises(ValueError, match="never.*step_00000001"):
        Registry(tmp_path).checkpoint.resume("never")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "rank_00000.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, name, damage):
    registry = Registry(tmp_path)
    registry.save(1)
    registry.save(2)
    damage(tmp_path / "step_00000002" / name)
    resumed = Registry(tmp_path)
    assert resumed.checkpoint.resume("auto")
    resumed.check(1)
    assert "step_00000002" in caplog.text and name in caplog.text
    resumed.save(2)  # and the damaged one can be written anew
    final = Registry(tmp_path)
    assert final.checkpoint.resume("auto")
    final.check(2)


def test_no_whole_checkpoint_is_an_error(tmp_path):
    Registry(tmp_path).save(1)
    cut(tmp_path / "step_00000001" / "rank_00000.json")
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        Registry(tmp_path).checkpoint.resume("auto")


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["safetensors.torch.save_file", "os.fsync", "os.rename", "pathlib.Path.mkdir"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, place):
    registry = Registry(tmp_path)
    registry.save(1)
    with monkeypatch.context() as patch:
        patch.setattr(place, full_disk)
        with pytest.raises(CheckpointError, match="No space left on device.*before it is untouched"):
            registry.save(2)
    assert names(tmp_path) == ["step_00000001"]
    resumed = Registry(tmp_path)
    assert resumed.checkpoint.resume("must")
    resumed.check(1)
    registry.save(3)
    assert names(tmp_path) == ["step_00000001", "step_00000003"]


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    registry = Registry(tmp_path)
    registry.save(1)

    class Killed(BaseException):
        """Nothing catches it, as nothing catches SIGKILL."""

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", killed)
        with pytest.raises(Killed):
            registry.save(2)
    assert names(tmp_path) == ["step_00000001", "step_00000002.tmp"]
    resumed = Registry(tmp_path)
    assert resumed.checkpoint.resume("auto")
    resumed.check(1)
    resumed.save(2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("shapes", [{"a.weight": (3, 2), "b": (5,)}, {"a.weight": (2, 3)}])
def test_a_checkpoint_of_another_network_is_refused(tmp_path, shapes):
    Registry(tmp_path).save(1)
    with pytest.raises(ValueError, match="of another network"):
        Registry(tmp_path, partition=make_partition(shapes)).checkpoint.resume("auto")


cuts = st.lists(st.integers(1, 10), max_size=4, unique=True).map(lambda inner: [0, *sorted(inner), 11])


@settings(max_examples=40, deadline=None)
@given(saved=cuts, wanted=cuts)
def test_any_cut_can_be_read_from_any_other(tmp_path_factory, saved, wanted):
    """Eleven elements, cut between ranks in one way when saved and in another when read."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("cuts")
    whole = torch.arange(11.0)
    for rank, (low, high) in enumerate(zip(saved, saved[1:], strict=False)):
        save_file({f"ema/{low}/w": whole[low:high].clone()}, folder / f"rank_{rank:05d}.safetensors")
    for low, high in zip(wanted, wanted[1:], strict=False):
        flat = torch.full((high - low + 3,), -1.0)
        piece = Piece(name="w", start=low, numel=high - low, flat=0, offset=2)
        partition = Partition(flats=[flat], pieces=[piece], shapes={"w": (11,)}, replicated=False)
        run_state._fill(folder, len(saved) - 1, partition, {"ema": [flat]})
        assert torch.equal(flat[2:-1], whole[low:high])
        assert flat[[0, 1, -1]].tolist() == [-1.0] * 3
