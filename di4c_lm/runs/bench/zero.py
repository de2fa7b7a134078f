"""Seconds a step and peak memory of a rank, by ZeRO stage, without and with CPU offload:

    di4c bench zero ranks=2 H=512 blocks=8 B=2 D=64 L=2 [--json]

Di4C's objective on a network with random weights, `ranks` processes over gloo (NCCL with device=cuda, one GPU a rank). `state` is what a
rank holds after the first step (on a CPU its resident memory less that before the network), `peak` the most that it ever held, in GiB,
`partition` its part of the fp32 weights; each is that of the rank with most.
"""

import functools
import time
from typing import Any, Literal

from di4c_lm.core.settings import section, setting
from di4c_lm.runs.bench.frame import BenchSettings, run_benchmark


@section
class Settings(BenchSettings):
    """Seconds a step and peak memory of a rank of Di4C's training, by ZeRO stage, without and with CPU offload."""

    ranks: int = setting(2, "processes; with CUDA one GPU each")
    threads: int = setting(1, "CPU threads of each rank")
    B: int = setting(2, "sequences in a rank's batch")
    D: int = setting(64, "positions in a sequence")
    S: int = setting(5001, "states: the vocabulary and MASK")
    H: int = setting(512, "width of the network")
    L: int = setting(2, "samples of λ per sequence")
    blocks: int = setting(8, "blocks of the network")
    heads: int = setting(8, "attention heads")
    steps: int = setting(3, "updates that are timed, after one to warm up; the fastest counts")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "type of the forward and backward passes")

    WAYS = ("0", "1", "2", "3", "1+offload", "2+offload", "3+offload")

    @property
    def processes(self) -> int:
        """One a rank."""
        return self.ranks


def measure(way: str, settings: Settings) -> dict[str, float]:
    """Seconds a step and GiB of the rank with most; all ranks call it."""
    import numpy as np
    import torch

    from di4c_lm.data.batches import BatchStream, PackedSource
    from di4c_lm.mixtures.token import TokenSettings
    from di4c_lm.networks.dit import DIT, DitConfig
    from di4c_lm.objectives.di4c import Di4C
    from di4c_lm.processes.masked import MaskedProcess
    from di4c_lm.runs.bench.measure import GIB, PeakMemory
    from di4c_lm.training.distributed import barrier, gather_objects, init_distributed
    from di4c_lm.training.ema import Ema
    from di4c_lm.training.engine import Engine
    from di4c_lm.training.loop import update
    from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

    world = init_distributed(settings.device)
    torch.manual_seed(0)
    model = DitConfig(hidden_size=settings.H, num_blocks=settings.blocks, num_heads=settings.heads)
    memory = PeakMemory(world.device)
    teacher = DIT(model, num_states=settings.S).to(world.device)
    student = TokenSettings().over(teacher, torch.Generator().manual_seed(0))
    teacher.to(getattr(torch, settings.dtype))
    process = MaskedProcess(settings.S - 1)
    objective = Di4C(num_lambdas=settings.L).build(student, process, seed=0, teacher=teacher)
    trained = sum(p.numel() for p in student.parameters())
    engine = Engine(
        objective,
        train=TrainConfig(micro_batch_size=settings.B, dtype=settings.dtype),
        optim=OptimConfig(),
        zero=ZeroConfig(stage=int(way[0]), offload=way.endswith("offload")),  # pyright: ignore[reportArgumentType]
        world=world,
    )
    tokens_ND = np.random.default_rng(0).integers(settings.S - 1, size=(64, settings.D))
    place: dict[str, Any] = {"micro_batch_size": settings.B, "rank": world.rank, "world_size": world.size}
    ema, batches = Ema(engine.partition, 0.999), BatchStream(PackedSource(tokens_ND, seed=0), **place)
    times, held = [], 0.0
    for number in range(settings.steps + 1):
        barrier()
        started = time.perf_counter()
        update(engine, batches, 1e-4, lambda: 0, lambda what: None)
        ema.update()
        barrier()
        times.append(time.perf_counter() - started)
        if number == 0:
            held = memory.now()
    found = {
        "parameters": trained,
        "seconds_per_step": min(times[1:]),
        "state": held - memory.base,
        "peak": memory.peak() - memory.base,
        "partition": sum(flat.numel() for flat in engine.partition.flats) * 4 / GIB,
    }
    ranks = gather_objects(found)
    return {name: max(rank[name] for rank in ranks) for name in found}


main = functools.partial(run_benchmark, "di4c bench zero", Settings, measure)
