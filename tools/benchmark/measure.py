"""Time by phase, and peak memory, on CPU and CUDA."""

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

GIB = 2**30


class Stopwatch:
    """Seconds by phase: wall clock on CPU, events on CUDA. A phase that runs inside another is taken out of the outer one."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self._open: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything in the block is `name`, but for the phases inside it."""
        self._open.append(name)
        self._mark()
        yield
        self._open.pop()
        self._mark()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, each call a phase."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return timed

    def seconds(self) -> dict[str, float]:
        """Of each phase so far; the watch starts anew."""
        if self._cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if name:
                total[name] = total.get(name, 0.0) + (start.elapsed_time(end) / 1e3 if self._cuda else end - start)
        self._marks = []
        return total

    def _mark(self) -> None:
        name = self._open[-1] if self._open else ""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))


class PeakMemory:
    """The peak since construction: of this process's resident memory, or of the memory that tensors hold on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            _forget_peak()
        self.base = torch.cuda.memory_allocated() / GIB if self._cuda else _status("VmRSS")

    def peak(self) -> float:
        """In GiB, in all."""
        return torch.cuda.max_memory_allocated() / GIB if self._cuda else _status("VmHWM")


def _forget_peak() -> None:
    """Linux resets VmHWM to VmRSS on this request; where it may not, the peak is that of the process's whole life."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(key: str) -> float:
    path = Path("/proc/self/status")
    if not path.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    line = next(line for line in path.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024 / GIB
