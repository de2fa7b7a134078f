"""Time by phase and peak memory, on CPU and CUDA, and a training step measured by them."""

import contextlib
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from di4c_lm.data.batches import Batch, batch_rng
from di4c_lm.networks.decoder import DecoderConfig
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.processes.process import Process

GIB = 2**30


class Stopwatch:
    """Seconds by phase, one at a time: wall clock on CPU, events on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    @property
    def phase(self) -> str:
        """The one that runs."""
        return self._marks[-1][0] if self._marks else ""

    def start(self, name: str) -> None:
        """The phase `name` begins, and the one before it ends."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def stop(self) -> dict[str, float]:
        """The last phase ends; seconds of each since the watch began anew, as it does now."""
        self.start("")
        if self._cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (name, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            total[name] = total.get(name, 0.0) + (start.elapsed_time(end) / 1e3 if self._cuda else end - start)
        self._marks = []
        return total


class PeakMemory:
    """The peak since construction: of this process's resident memory, or of the memory that tensors hold on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with contextlib.suppress(OSError):  # where it may not, the peak is that of the process's whole life
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux resets VmHWM to VmRSS
        self.base = self.now()

    def now(self) -> float:
        """In GiB, in all, at this moment."""
        return torch.cuda.memory_allocated() / GIB if self._cuda else _status("VmRSS")

    def peak(self) -> float:
        """In GiB, in all."""
        return torch.cuda.max_memory_allocated() / GIB if self._cuda else _status("VmHWM")


def randomise(network: nn.Module) -> nn.Module:
    """`network` with random weights in all its matrices, those that begin at 0 too."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02)
    return network


def watch_networks(student: nn.Module, teacher: nn.Module, watch: Stopwatch) -> None:
    """Phases of an objective by its calls: the teacher's first, the student's without gradient and with it, and then the loss.

    A second call of the teacher begins the distillation at inputs of its own, which lasts until the next phase.
    """

    def teacher_begins(*_: Any) -> None:
        watch.start("teacher sampling" if watch.phase == "sampling" else "distillation")

    def student_begins(*_: Any) -> None:
        if watch.phase != "distillation":
            watch.start("student on x_t" if torch.is_grad_enabled() else "student on x_u")

    def student_ends(*_: Any) -> None:
        if watch.phase == "student on x_t":
            watch.start("loss")

    teacher.register_forward_pre_hook(teacher_begins)
    student.register_forward_pre_hook(student_begins)
    student.register_forward_hook(student_ends)


def llama_shape(width: int, num_blocks: int, num_heads: int, **more: Any) -> DecoderConfig:
    """A decoder of as many heads of keys as of queries, its MLP 8/3 as wide as itself."""
    return DecoderConfig(
        hidden_size=width,
        num_blocks=num_blocks,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        mlp_size=8 * width // 3,
        **more,
    )


def measure_training(
    way: str,
    networks: Sequence[nn.Module],
    process: Process,
    x: Tensor,
    times: tuple[float, float],
    objective: Di4C,
    plain: Callable[..., Tensor],
    phases: Sequence[str],
    repeat: int,
) -> dict[str, Any]:
    """`measure_step` of Di4C at times (t, u), by its `objective`, or where `way` is plain by the loss `plain` of the published way.

    `networks` are the student and the teacher, whose matrices get random weights; x is (B, D).
    """
    student, teacher = [randomise(network).to(x.device) for network in networks]
    teacher.requires_grad_(False)
    number_B, watch = torch.arange(len(x), device=x.device), Stopwatch(x.device)
    batch = Batch(x=x, sample_id=number_B, epoch=torch.zeros_like(number_B))
    t_B, u_B = (torch.full((len(x),), time, dtype=torch.float64, device=x.device) for time in times)
    if way == "plain":
        x_t = process.corrupt(x, t_B, batch_rng(0, batch))
        return measure_step(
            student,
            lambda: plain(student, teacher, process, x, x_t, times, objective.num_lambdas, watch),
            watch,
            phases,
            repeat,
        )
    trained: Any = objective.build(student, process, seed=0, teacher=teacher)
    trained.times = lambda *_: (t_B, u_B)
    watch_networks(student, teacher, watch)
    return measure_step(student, lambda: trained(batch)[0], watch, phases, repeat)


def measure_step(
    student: nn.Module, loss: Callable[[], Tensor], watch: Stopwatch, phases: Sequence[str], repeat: int
) -> dict[str, Any]:
    """Seconds, in all and by phase, and memory of one training step without the optimiser, the fastest of `repeat`.

    `loss` begins the phases on `watch` from the second on; a phase that it does not have takes 0 seconds.
    """
    memory = PeakMemory(next(student.parameters()).device)
    best: dict[str, float] = {}
    value, started = torch.zeros(()), time.process_time()
    for _ in range(repeat):
        student.zero_grad(set_to_none=True)
        watch.start("sampling")
        value = loss()
        watch.start("backward")
        value.backward()
        seconds = watch.stop()
        if not best or sum(seconds.values()) < sum(best.values()):
            best = seconds
    best[phases[0]] = best.get(phases[0], 0.0) + best.pop("sampling")
    return {
        "seconds": sum(best.values()),
        "peak_gib_above_models": memory.peak() - memory.base,
        "peak_gib": memory.peak(),
        "phases": {name: best.get(name, 0.0) for name in phases},
        "cpu_seconds": (time.process_time() - started) / repeat,
        "value": float(value.detach()),
    }


def _status(key: str) -> float:
    path = Path("/proc/self/status")
    if not path.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024 / GIB
