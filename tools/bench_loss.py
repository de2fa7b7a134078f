"""Time and memory of one Di4C training step without the optimiser, lean against plain:

    python tools/bench_loss.py D=256 L=16 B=1 S=50258 H=768 blocks=2 heads=12 inject_at=0 threads=2 [--json]

Each way runs in a process of its own on the same weights and the same x_t. More settings: path=token|adaln, matmul=same|bf16 (products of
the lean head), dtype=float32|bfloat16 (of the networks), t=0.5, repeat=1 (the fastest counts), ways=lean,plain, device=auto|cpu|cuda,
chunk_rows=0. `--json` prints one object on the last line.
"""

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from benchmark.apart import run_apart
from benchmark.measure import PeakMemory, Stopwatch
from benchmark.plain import backbone_loss
from benchmark.words import split_words
from torch import nn

from di4c_lm.data.batches import Batch, batch_rng
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.processes.masked import MaskedProcess

PHASES = ("teacher sampling", "student on x_u", "student on x_t", "loss", "backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """Sizes and ways, as named on the command line."""

    D: int = 256
    L: int = 16
    B: int = 1
    S: int = 50258
    H: int = 768
    blocks: int = 2
    heads: int = 12
    inject_at: int = 0
    threads: int = 2
    path: str = "token"
    matmul: str = "same"
    dtype: str = "float32"
    t: float = 0.5
    repeat: int = 1
    ways: str = "lean,plain"
    device: str = "auto"
    chunk_rows: int = 0

    @classmethod
    def parse(cls, assignments: list[str]) -> "Settings":
        """From key=value; raises `ValueError` for an unknown key, or a value of the wrong type."""
        values: dict[str, Any] = {}
        for key, value, kind, _ in split_words(cls, assignments):
            values[key] = kind(value)
        return cls(**values)

    def assignments(self) -> list[str]:
        """What `parse` reads."""
        return [f"{key}={value}" for key, value in dataclasses.asdict(self).items()]

    def torch_device(self) -> torch.device:
        """CUDA where there is one, unless told."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)


def build(settings: Settings) -> tuple[DIT, DIT]:
    """Student and teacher with random weights everywhere, the same for both ways."""
    torch.manual_seed(0)
    model = DitConfig(hidden_size=settings.H, num_blocks=settings.blocks, num_heads=settings.heads)
    latent = LatentConfig(path="adaln" if settings.path == "adaln" else "token", inject_at=settings.inject_at)
    networks = [DIT(model, num_states=settings.S, latent=chosen) for chosen in (latent, None)]
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
    student, teacher = (net.to(settings.torch_device(), DTYPES[settings.dtype]) for net in networks)
    return student, teacher.requires_grad_(False)


def measure(way: str, settings: Settings) -> dict[str, Any]:
    """Seconds, phases and memory of one way, in this process."""
    if settings.device != "cuda":
        torch.set_num_threads(settings.threads)
    device = settings.torch_device()
    student, teacher = build(settings)
    rng = torch.Generator().manual_seed(1)
    x = torch.randint(settings.S - 1, (settings.B, settings.D), generator=rng).to(device)
    batch = Batch(x, torch.arange(settings.B, device=device), torch.zeros(settings.B, dtype=torch.int64, device=device))
    watch = Stopwatch(device)
    step = (
        lean_step(settings, student, teacher, batch, watch)
        if way == "lean"
        else plain_step(settings, student, teacher, batch, watch)
    )
    memory = PeakMemory(device)
    best: dict[str, float] = {}
    started = time.process_time()
    for _ in range(settings.repeat):
        student.zero_grad(set_to_none=True)
        with watch.phase("loss"):
            loss = step()
        with watch.phase("backward"):
            loss.backward()
        phases = watch.seconds()
        if not best or sum(phases.values()) < sum(best.values()):
            best = phases
    return {
        "seconds": sum(best.values()),
        "peak_gib_above_models": memory.peak() - memory.base,
        "peak_gib": memory.peak(),
        "phases": {name: best.get(name, 0.0) for name in PHASES},
        "cpu_seconds": (time.process_time() - started) / settings.repeat,
        "value": float(loss),
    }


def lean_step(settings: Settings, student: DIT, teacher: DIT, batch: Batch, watch: Stopwatch) -> Any:
    """The objective that trains, with the time held at t and a watch on its parts."""
    chosen = Di4C(num_lambdas=settings.L, chunk_rows=settings.chunk_rows)
    student.matmul_dtype = torch.bfloat16 if settings.matmul == "bf16" else None
    teacher.matmul_dtype = student.matmul_dtype
    objective = chosen.build(student, MaskedProcess(settings.S - 1), seed=0, teacher=teacher)
    t_B = torch.full((settings.B,), settings.t, dtype=torch.float64, device=batch.x.device)
    sampling: Any = objective.sampling
    sampling.times = lambda *_: (t_B, chosen.teacher_step.end(t_B))
    sampling.teacher_step = watch.wrap("teacher sampling", sampling.teacher_step)
    sampling.consistency_target = watch.wrap("student on x_u", sampling.consistency_target)
    run = student.forward

    def forward(*args: Any) -> Any:
        with watch.phase("student on x_t" if torch.is_grad_enabled() else "student on x_u"):
            return run(*args)

    student.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    return lambda: objective(batch)[0]


def plain_step(settings: Settings, student: DIT, teacher: DIT, batch: Batch, watch: Stopwatch) -> Any:
    """The published way, on the x_t that the objective would draw."""
    process = MaskedProcess(settings.S - 1)
    t_B = torch.full((settings.B,), settings.t, dtype=torch.float64, device=batch.x.device)
    x_t = process.corrupt(batch.x, t_B, batch_rng(0, batch))
    u = settings.t - min(1 / 1024, settings.t / 2)
    return lambda: backbone_loss(student, teacher, process, batch.x, x_t, settings.t, u, settings.L, watch)


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """One column a way, and their ratio."""
    ways = list(results)
    print(f"{'':24}" + "".join(f"{way:>10}" for way in ways) + ("     ratio" if len(ways) > 1 else ""))
    flat = {
        way: {**found["phases"], **{k: v for k, v in found.items() if k != "phases"}} for way, found in results.items()
    }
    for name in (*PHASES, "seconds", "peak_gib_above_models", "peak_gib", "cpu_seconds", "value"):
        values = [flat[way][name] for way in ways]
        ratio = f"{values[0] / values[1]:10.2f}" if len(values) > 1 and values[1] else ""
        print(f"{name:24}" + "".join(f"{value:10.2f}" for value in values) + ratio)


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Lean over plain."""
    if len(results) < 2:
        return {}
    return {name: results["lean"][name] / results["plain"][name] for name in ("seconds", "peak_gib_above_models")}


def main() -> None:
    """Measure each way and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--way", choices=("lean", "plain"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        settings = Settings.parse(arguments.settings)
    except ValueError as error:
        parser.error(str(error))
    if arguments.way:
        print(json.dumps(measure(arguments.way, settings)))
        return
    results = {
        way: run_apart(__file__, way, settings.assignments(), threads=settings.threads)
        for way in settings.ways.split(",")
    }
    print_table(results)
    if arguments.json:
        print(json.dumps({**results, "ratio": ratios(results)}))


if __name__ == "__main__":
    main()
