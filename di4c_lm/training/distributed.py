"""The processes of a run: how they find each other, the few things they tell each other, and a watchdog that names one that hangs.

Collectives alone wait for ever, or fail without a name. So each rank says a few times a timeout, on a thread of its own, that it lives
and how far its work is. The store of the run carries it, over gloo and NCCL alike. Rank 0 monitors all ranks; the others monitor rank 0,
and take its verdict.
"""

import dataclasses
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from di4c_lm.core.cache import everywhere

logger = logging.getLogger(__name__)
EXIT_STATUS = 75  # EX_TEMPFAIL: started again, the run goes on from its checkpoint
_VERDICT = "verdict"
_SHORTEST = 1.0  # seconds between two heartbeats, at most
T = TypeVar("T")


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

    def on_main(self, action: Callable[[], T]) -> T:
        """What `action()` returns on rank 0, on every rank. An error of it is raised on all ranks, as `ValueError` on the others."""
        return cast(T, everywhere(self, lambda: action() if self.is_main else None)[0])


def rank() -> int:
    """Rank of this process; 0 where no process group exists."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes of the run; 1 where no process group exists."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the one process that writes and reports."""
    return rank() == 0


def choose_device(device: str, local_rank: int) -> torch.device:
    """The device of a rank. Raises `ValueError` for a GPU that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("run.device must be cpu or auto where no GPU can be used, got 'cuda'")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise ValueError(f"local rank {local_rank} has no GPU of its own: this machine has {count}")
    return torch.device("cuda", local_rank)


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for products in bfloat16: without them these are slower than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def init_distributed(
    device: Literal["auto", "cpu", "cuda"] = "auto", timeout: timedelta = timedelta(minutes=30)
) -> World:
    """Join the process group, once; later calls return the same world.

    Works under the `deepspeed` launcher, `torchrun`, and as plain `python script.py` (a world of one, without a port). CPU tensors
    travel over gloo, CUDA tensors over NCCL. A collective that waits longer than `timeout` ends the run.
    """
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on the variable
    local_rank, size = _said("LOCAL_RANK"), _said("WORLD_SIZE", 1)
    place = choose_device(device, local_rank)
    os.environ.setdefault("DS_ACCELERATOR", place.type)  # read by DeepSpeed when it is first imported
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        if size > 1:
            _meet(backend, timeout)
        else:  # without a port, whatever the launcher says of one
            store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    return World(rank=dist.get_rank(), local_rank=local_rank, size=dist.get_world_size(), device=place)


def _said(variable: str, default: int | None = None) -> int:
    """A number that a launcher leaves in the environment. Raises `ValueError` that names the variable."""
    word = os.environ.get(variable, "" if default is None else str(default))
    if not word.isdecimal():
        raise ValueError(f"{variable} must be a whole number, as launchers set it, got {word!r}")
    return int(word)


def _meet(backend: str, timeout: timedelta) -> None:
    """Find the other ranks at the place that the launcher says. Raises `ValueError` where that is impossible."""
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if absent:
        raise ValueError(f"{absent[0]} must be set where WORLD_SIZE is above 1: start with `deepspeed` or `torchrun`")
    port = _said("MASTER_PORT")
    _said("RANK")
    try:
        dist.init_process_group(backend, timeout=timeout)
    except (dist.DistNetworkError, OSError) as error:
        if "EADDRINUSE" not in str(error):
            raise ValueError(f"MASTER_PORT={port}: the ranks cannot meet there: {error}") from error
        raise ValueError(
            f"MASTER_PORT={port} is taken, by another run perhaps: say `deepspeed --master_port {free_port()}`, which is free"
        ) from error


def free_port() -> int:
    """One of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


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
    total = values.clone(memory_format=torch.contiguous_format)  # ranks add up memory, whatever its strides
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


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What a rank says: `pulse` counts its heartbeats, `beats` the moves of its work, the last of them to `place`.

    `broken`: a collective has failed; `failed`: the work ended by the error in `place`; `left`: it ended well.
    """

    pulse: int = 0
    beats: int = 0
    place: str = "the start"
    status: Literal["working", "broken", "failed", "left"] = "working"


class Monitor:
    """Which ranks hang, by their heartbeats. `now` is any clock in seconds; `timeout` and `grace`, the patience after an error, too."""

    def __init__(self, *, timeout: int | float, grace: int | float) -> None:
        self._timeout, self._grace = timeout, grace
        self._signs: dict[int, Heartbeat] = {}
        self._pulse_at: dict[int, float] = {}
        self._beat_at: dict[int, float] = {}

    def hear(self, heartbeats: Mapping[int, Heartbeat], now: int | float) -> None:
        """Take in what each rank said last."""
        for number, heartbeat in heartbeats.items():
            before = self._signs.get(number)
            if before is None or heartbeat.pulse != before.pulse:
                self._pulse_at[number] = now
            if before is None or heartbeat.beats != before.beats:
                self._beat_at[number] = now
            self._signs[number] = heartbeat

    def silent(self, now: int | float, *, broken: bool) -> dict[int, str]:
        """Ranks that are dead or stopped, whose pulse stands still, and how they were last; less time is needed if a collective broke."""
        broken = broken or any(heartbeat.status == "broken" for heartbeat in self._signs.values())
        found: dict[int, str] = {}
        for number, heartbeat in self._signs.items():
            seconds = now - self._pulse_at[number]
            if heartbeat.status == "failed" and seconds > self._grace:
                found[number] = f"failed: {heartbeat.place}"
            elif heartbeat.status in ("working", "broken") and seconds > (self._grace if broken else self._timeout):
                found[number] = f"has given no sign of life for {seconds:.1f} s; it was at {heartbeat.place}"
        return found

    def behind(self, now: int | float) -> dict[int, str]:
        """Once nobody's work has moved for the timeout: the ranks that are furthest behind, for whom the others wait."""
        working = {number: heartbeat for number, heartbeat in self._signs.items() if heartbeat.status == "working"}
        if not working or any(now - self._beat_at[number] <= self._timeout for number in working):
            return {}
        least = min(heartbeat.beats for heartbeat in working.values())
        return {
            number: f"has not moved for {now - self._beat_at[number]:.1f} s; it is at {heartbeat.place}"
            for number, heartbeat in working.items()
            if heartbeat.beats == least
        }


class Watchdog:
    """A context manager around the work of all ranks, which says by `beat` that it goes on; `timeout` in seconds, 0 for no watch.

    If a rank dies or stops, the others log its name, host and process within about `timeout` and leave with `EXIT_STATUS`, from a thread:
    the work itself may hang in a collective. After a collective's error they look for a missing rank, and let the error pass if there is
    none. Time for which this process was stopped itself does not count.
    """

    _runs = 0  # the same on all ranks: the keys of one watch must not be taken for another's

    def __init__(self, timeout: int | float) -> None:
        self._timeout = timeout
        self._period = min(_SHORTEST, timeout / 10)
        self._grace = 4 * self._period
        self._rank, self._names = rank(), [""]
        self._own = Heartbeat()
        self._heard: dict[int, Heartbeat] = {}
        self._verdict = ""
        self._leave = threading.Event()
        self._talker = threading.Thread(target=self._talk, name="watchdog-talk", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._timeout:
            self._names = gather_objects(f"rank {rank()} (host {socket.gethostname()}, process {os.getpid()})")
            Watchdog._runs += 1
            self._store = _connect(f"watch/{Watchdog._runs}", self._timeout)
            self._say(0)
            if self._rank == 0:
                self._store.set(_VERDICT, "")
            barrier()  # from here on every key is there
            self._talker.start()
            threading.Thread(target=self._watch, name="watchdog-monitor", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if not self._timeout:
            return
        if world_size() > 1 and (type(error) is RuntimeError or isinstance(error, dist.DistError)):
            self._own = dataclasses.replace(self._own, status="broken")
            time.sleep(3 * self._grace)  # the watchdog ends the process meanwhile, if a rank is missing
        failed = isinstance(error, Exception)
        place = f"{type(error).__name__}: {error}" if failed else self._own.place
        self._own = dataclasses.replace(self._own, status="failed" if failed else "left", place=place)
        self._leave.set()
        self._talker.join(self._grace)
        if failed and self._rank == 0:
            time.sleep(2 * self._period)  # the others hear of it before the store goes

    def beat(self, place: str) -> None:
        """This rank's work goes on, and is now at `place`."""
        self._own = Heartbeat(beats=self._own.beats + 1, place=place)

    def _say(self, pulse: int) -> None:
        self._store.set(str(self._rank), json.dumps(dataclasses.asdict(dataclasses.replace(self._own, pulse=pulse))))

    def _talk(self) -> None:
        """Say that this rank lives, and hear how the others are. A store that does not answer holds up this thread alone."""
        ranks = list(range(len(self._names))) if self._rank == 0 else [0]
        pulse, leaving = 0, False
        try:
            while not leaving:
                leaving = self._leave.wait(self._period)
                pulse += 1
                self._say(pulse)
                *said, verdict = self._store.multi_get([*map(str, ranks), _VERDICT])
                self._heard = {number: Heartbeat(**json.loads(one)) for number, one in zip(ranks, said, strict=True)}
                self._verdict = verdict.decode()
        except RuntimeError as error:  # its rank ended: the monitor sees that its pulse stands still
            logger.debug("rank %d has lost the store of the run: %s", self._rank, error)

    def _watch(self) -> None:
        monitor = Monitor(timeout=self._timeout, grace=self._grace)
        monitor.hear(dict.fromkeys(range(len(self._names)) if self._rank == 0 else [0], Heartbeat()), 0.0)
        clock, last = 0.0, time.monotonic()
        while not self._leave.wait(self._period):
            now = time.monotonic()
            clock, last = clock + min(now - last, 2 * self._period), now
            monitor.hear(self._heard, clock)
            hanging = monitor.silent(clock, broken=self._own.status == "broken")
            if not hanging and self._rank == 0:
                hanging = monitor.behind(clock)
            verdict = self._verdict or "; ".join(f"{self._names[number]} {how}" for number, how in hanging.items())
            if verdict:
                self._end(verdict)

    def _end(self, verdict: str) -> None:
        logger.error("rank %d ends the run: %s", self._rank, verdict)
        if self._rank == 0:
            threading.Thread(target=self._store.set, args=(_VERDICT, verdict), daemon=True).start()
            time.sleep(3 * self._period)  # the others read it before the store goes
        os._exit(EXIT_STATUS)


def _connect(prefix: str, timeout: int | float) -> Any:
    """A connection of our own to the store of the run, since calls over one connection wait for each other."""
    if world_size() == 1:
        return dist.PrefixStore(prefix, dist.HashStore())  # pyright: ignore[reportPrivateImportUsage]
    host, port, wait = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), timedelta(seconds=max(10.0, timeout))
    store = dist.TCPStore(host, port, is_master=False, timeout=wait)  # pyright: ignore[reportPrivateImportUsage]
    return dist.PrefixStore(prefix, store)  # pyright: ignore[reportPrivateImportUsage]


def partition(blocks: Sequence[nn.Module], world: World) -> None:
    """Leave of each of a frozen network's blocks this rank's part (PyTorch's fully sharded data parallel, one block a group).

    A block's weights are gathered before it runs, forwards or backwards, and let go behind it; what is outside the blocks, such as
    embeddings and the output head, stays whole. Predictions do not change by a bit. All ranks call it, and from then on the network alike:
    its state dict is no longer whole on any of them.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
