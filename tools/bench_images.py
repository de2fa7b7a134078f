"""Time and memory of one Di4C training step of tauLDR's U-Net without the optimiser, lean against plain:

    python tools/bench_images.py L=16 B=8 size=32 channels=3 S=256 width=128 multipliers=1,2,2,2 blocks=2 threads=2 [--json]

The defaults are the paper's run. Each way runs in a process of its own on the same weights and the same images, at t and t - 0.005. More
settings: t=0.5, repeat=1 (the fastest counts), ways=lean,plain, device=auto|cpu|cuda, chunk_rows=0, recompute=0 (1: both ways make
activations anew in the backward pass). `--json` prints one object on the last line.
"""

import argparse
import json
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from benchmark.apart import run_apart
from benchmark.measure import PeakMemory, Stopwatch
from benchmark.plain_images import unet_loss
from benchmark.words import split_words
from torch import Tensor, nn

from di4c_lm.data.batches import Batch, batch_rng
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.objectives.teacher_step import TeacherStep
from di4c_lm.processes.gaussian import GaussianChain

PHASES = ("teacher sampling", "student on x_u", "student on x_t", "distillation", "loss", "backward")
HOP = 0.005


@dataclass(frozen=True)
class Settings:
    """Sizes and ways, as named on the command line."""

    L: int = 16
    B: int = 8
    size: int = 32
    channels: int = 3
    S: int = 256
    width: int = 128
    multipliers: str = "1,2,2,2"
    blocks: int = 2
    threads: int = 2
    t: float = 0.5
    repeat: int = 1
    ways: str = "lean,plain"
    device: str = "auto"
    chunk_rows: int = 0
    recompute: int = 0

    @classmethod
    def parse(cls, assignments: list[str]) -> "Settings":
        """From key=value; raises `ValueError` for an unknown key, or a value of the wrong type."""
        values: dict[str, Any] = {}
        for key, value, kind, _ in split_words(cls, assignments):
            values[key] = kind(value)
        return cls(**values)

    def torch_device(self) -> torch.device:
        """CUDA where there is one, unless told."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)


def build(settings: Settings) -> tuple[UNet, UNet]:
    """Student and teacher with random weights everywhere, the same for both ways."""
    torch.manual_seed(0)
    multipliers = tuple(int(part) for part in settings.multipliers.split(","))
    model = UnetConfig(width=settings.width, multipliers=multipliers, res_blocks=settings.blocks, dropout=0.0)
    shape = (settings.size, settings.size, settings.channels)
    networks = [UNet(model, shape=shape, num_states=settings.S, latent=chosen) for chosen in (LatentConfig(), None)]
    for network in networks:
        network.activation_checkpointing = bool(settings.recompute)
        for layer in network.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
    student, teacher = (net.to(settings.torch_device()) for net in networks)
    return student, teacher.requires_grad_(False)


def measure(way: str, settings: Settings) -> dict[str, Any]:
    """Seconds, phases and memory of one way, in this process."""
    device = settings.torch_device()
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    student, teacher = build(settings)
    rng, chain = torch.Generator().manual_seed(1), GaussianChain(num_states=settings.S)
    x = torch.randint(settings.S, (settings.B, student.length), generator=rng).to(device)
    batch = Batch(x, torch.arange(settings.B, device=device), torch.zeros(settings.B, dtype=torch.int64, device=device))
    watch, memory = Stopwatch(device), PeakMemory(device)
    best: dict[str, float] = {}
    loss = torch.zeros(())
    for _ in range(settings.repeat):
        student.zero_grad(set_to_none=True)
        with watch.phase("loss"):
            loss = _loss(way, settings, (student, teacher), chain, batch, watch)
        with watch.phase("backward"):
            loss.backward()
        phases = watch.seconds()
        if not best or sum(phases.values()) < sum(best.values()):
            best = phases
    return {
        "seconds": sum(best.values()),
        "peak_gib_above_models": memory.peak() - memory.base,
        "phases": {name: best.get(name, 0.0) for name in PHASES},
        "value": float(loss.detach()),
    }


def _loss(
    way: str, settings: Settings, networks: tuple[UNet, UNet], chain: GaussianChain, batch: Batch, watch: Stopwatch
) -> Tensor:
    student, teacher = networks
    times_B = [torch.full((settings.B,), time, dtype=torch.float64) for time in (settings.t, settings.t - HOP)]
    t_B, u_B = (time_B.to(batch.x.device) for time_B in times_B)
    if way == "plain":
        x_t = chain.corrupt(batch.x, t_B, batch_rng(0, batch))
        return unet_loss(student, teacher, chain, batch.x, x_t, (settings.t, settings.t - HOP), settings.L, watch)
    chosen = Di4C(
        num_lambdas=settings.L,
        chunk_rows=settings.chunk_rows,
        distil_inputs="own",
        delta=0.01,
        alpha_scale=1.0,
        teacher_step=TeacherStep(distribution="log_uniform", low=0.001, high=0.01),
    )
    objective: Any = chosen.build(student, chain, seed=0, teacher=teacher)
    objective.sampling.times = lambda *_: (t_B, u_B)
    run = student.forward

    def forward(x_t: Tensor, t: Tensor, lam: Tensor | None = None, cond: Tensor | None = None) -> Any:
        with watch.phase("student on x_t") if lam is not None and lam.shape[1] > 1 else nullcontext():
            return run(x_t, t, lam, cond)

    setattr(student, "forward", forward)  # noqa: B010
    for owner, name, phase in (
        (objective.sampling, "teacher_step", "teacher sampling"),
        (objective.sampling, "consistency_target", "student on x_u"),
        (objective, "own_distillation", "distillation"),
    ):
        setattr(owner, name, watch.wrap(phase, getattr(owner, name)))
    loss = objective(batch)[0]
    setattr(student, "forward", run)  # noqa: B010
    return loss


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """One column a way."""
    print(f"{'':24}" + "".join(f"{way:>10}" for way in results))
    for row in ("seconds", "peak_gib_above_models"):
        print(f"{row:24}" + "".join(f"{result[row]:10.2f}" for result in results.values()))
    for phase in PHASES:
        print(f"  {phase:22}" + "".join(f"{result['phases'][phase]:10.2f}" for result in results.values()))


def main() -> None:
    """Each way in a process of its own, then the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--way", help="measure this way here, and print JSON")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        settings = Settings.parse(given.settings)
    except ValueError as error:
        parser.error(str(error))
    if given.way:
        print(json.dumps(measure(given.way, settings)))
        return
    results = {
        way: run_apart(__file__, way, given.settings, threads=settings.threads) for way in settings.ways.split(",")
    }
    print_table(results)
    if given.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
