"""The processes of a run: how they find each other, and the few things they tell each other."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those of the run: `rank` of `size`, the `local_rank`-th on its machine, computing on `device`."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one process that writes and reports."""
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """Each rank's `item`, in order of rank, on every rank."""
        return gather_objects(item)


def rank() -> int:
    """Rank of this process; 0 where no process group exists."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes of the run; 1 where no process group exists."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the one process that writes and reports."""
    return rank() == 0


def _choose_device(device: str, local_rank: int) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("run.device='cuda' is impossible: this machine has no usable GPU; use run.device=cpu or auto")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(f"local rank {local_rank} has no GPU of its own: this machine has {count}")
    return torch.device("cuda", local_rank)


def init_distributed(
    device: Literal["auto", "cpu", "cuda"] = "auto", timeout: timedelta = timedelta(minutes=30)
) -> World:
    """Join the process group, once; later calls return the same world.

    Works under the `deepspeed` launcher, `torchrun`, and as plain `python script.py` (a world of one, without a port). CPU tensors
    travel over gloo, CUDA tensors over NCCL. A collective that waits longer than `timeout` ends the run.
    """
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed insists on the variable
    place = _choose_device(device, local_rank)
    os.environ.setdefault("DS_ACCELERATOR", place.type)  # read by DeepSpeed when it is first imported
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
            dist.init_process_group(backend, timeout=timeout)
        else:
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    return World(rank=dist.get_rank(), local_rank=local_rank, size=dist.get_world_size(), device=place)


def set_threads(threads: int) -> None:
    """CPU threads of this rank: `threads`, or where that is 0 the cores shared out among the ranks of this machine.

    (The `deepspeed` launcher tells their number by LOCAL_SIZE, `torchrun` by LOCAL_WORLD_SIZE.)
    """
    local_ranks = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or "1")
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local_ranks))


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: Tensor) -> Tensor:
    """`values` summed over all ranks, on every rank."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def gather_objects(item: Any) -> list[Any]:
    """Each rank's `item`, in order of rank, on every rank."""
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def barrier() -> None:
    """Wait until every rank is here. (An object gather: it needs no device of its own.)"""
    gather_objects(None)
