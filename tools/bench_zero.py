"""Seconds a step and peak memory of a rank, by ZeRO stage, without and with CPU offload:

    python tools/bench_zero.py ranks=2 H=512 blocks=8 B=2 D=64 L=2 [--json]

Di4C's objective on a network with random weights, `ranks` processes over gloo (NCCL with device=cuda, one GPU a rank). Each way runs in
processes of its own. More settings: S=5001 (states), heads=8, steps=3 (timed, after one to warm up; the fastest counts), threads=1 a rank,
ways=0,1,2,3,1+offload,2+offload,3+offload, dtype=float32|bfloat16, device=auto|cpu|cuda. `state` is what a rank holds after the first step
(on a CPU its resident memory less that before the network), `peak` the most that it ever held. `--json` prints one object on the last line.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from benchmark.words import split_words

WAYS = ("0", "1", "2", "3", "1+offload", "2+offload", "3+offload")
CHOICES = {"dtype": ("float32", "bfloat16"), "device": ("auto", "cpu", "cuda")}


@dataclass(frozen=True)
class Settings:
    """Sizes and ways, as named on the command line."""

    ranks: int = 2
    B: int = 2
    D: int = 64
    S: int = 5001
    H: int = 512
    L: int = 2
    blocks: int = 8
    heads: int = 8
    steps: int = 3
    threads: int = 1
    ways: str = ",".join(WAYS)
    dtype: str = "float32"
    device: str = "auto"

    @classmethod
    def parse(cls, assignments: list[str]) -> "Settings":
        """From key=value; raises `ValueError` for an unknown key, or a value that is impossible."""
        values: dict[str, Any] = {}
        for key, value, kind, assignment in split_words(cls, assignments):
            if kind is int and (not value.isdecimal() or int(value) < 1):
                raise ValueError(f"{assignment!r}: allowed is an integer of at least 1")
            allowed = CHOICES.get(key, WAYS)
            if kind is str and not set(value.split(",")) <= set(allowed):
                raise ValueError(f"{assignment!r}: allowed are {', '.join(allowed)}")
            values[key] = kind(value)
        return cls(**values)


def measure(way: str, settings: Settings) -> list[dict[str, float]]:
    """Seconds a step and GiB of every rank, in this rank's process; all ranks call it."""
    import torch
    from benchmark.measure import GIB, PeakMemory

    from di4c_lm.checkpoints.student import student_from_teacher
    from di4c_lm.data.batches import Batch
    from di4c_lm.mixtures.settings import LatentConfig
    from di4c_lm.networks.dit import DIT, DitConfig
    from di4c_lm.objectives.di4c import Di4C
    from di4c_lm.processes.masked import MaskedProcess
    from di4c_lm.training.distributed import barrier, gather_objects, init_distributed
    from di4c_lm.training.ema import Ema
    from di4c_lm.training.engine import Engine
    from di4c_lm.training.loop import update
    from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

    class Batches:
        """The same sequences in each step, others on each rank."""

        def __next__(self) -> Batch:
            first = world.rank * settings.B
            ids = torch.arange(first, first + settings.B)
            x = torch.stack(
                [
                    torch.randint(settings.S - 1, (settings.D,), generator=torch.Generator().manual_seed(int(i)))
                    for i in ids
                ]
            )
            return Batch(x=x, sample_id=ids, epoch=torch.zeros_like(ids))

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            assert not state

    world = init_distributed(settings.device)  # pyright: ignore[reportArgumentType]
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    shape = DitConfig(hidden_size=settings.H, num_blocks=settings.blocks, num_heads=settings.heads)
    train = TrainConfig(micro_batch_size=settings.B, dtype=settings.dtype)  # pyright: ignore[reportArgumentType]
    zero = ZeroConfig(stage=int(way[0]), offload=way.endswith("offload"))  # pyright: ignore[reportArgumentType]
    memory = PeakMemory(world.device)
    teacher = DIT(shape, num_states=settings.S).to(world.device)
    student = student_from_teacher(teacher, LatentConfig(), torch.Generator().manual_seed(0))
    teacher.to(torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32)
    process = MaskedProcess(settings.S - 1)
    objective = Di4C(num_lambdas=settings.L).build(student, process, seed=0, teacher=teacher)
    trained = sum(p.numel() for p in student.parameters())
    engine = Engine(objective, train=train, optim=OptimConfig(), zero=zero, world=world)
    ema = Ema(engine.partition, 0.999)
    times, held, batches = [], 0.0, Batches()
    for number in range(settings.steps + 1):
        barrier()
        started = time.perf_counter()
        update(engine, batches, 1e-4, lambda: 0, lambda what: None)
        ema.update()
        barrier()
        times.append(time.perf_counter() - started)
        if number == 0:
            held = PeakMemory(world.device).base if world.device.type == "cuda" else _resident()
    return gather_objects(
        {
            "parameters": trained,
            "seconds_per_step": min(times[1:]),
            "state": held - memory.base,
            "peak": memory.peak() - memory.base,
            "partition": sum(flat.numel() for flat in engine.partition.flats) * 4 / GIB,
        }
    )


def _resident() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 2**20


def run_ranks(way: str, words: list[str], settings: Settings) -> list[dict[str, float]]:
    """`measure` in as many processes as there are ranks. Ends the program if one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(settings.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, __file__, "--way", way, *words]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(r), "LOCAL_RANK": str(r), "OMP_NUM_THREADS": str(settings.threads)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(settings.ranks)
    ]
    ended = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        if process.returncode:
            raise SystemExit(f"a rank of way {way} ended with exit code {process.returncode}\n{errors[-2000:]}")
    return json.loads(ended[0][0].splitlines()[-1])


def print_table(results: dict[str, dict[str, float]]) -> None:
    """One line a way; memory is that of the rank that needs most."""
    print(f"{'ZeRO stage':12}{'s/step':>10}{'state GiB':>12}{'peak GiB':>12}{'masters GiB':>14}")
    for way, found in results.items():
        numbers = (
            f"{found['seconds_per_step']:10.3f}{found['state']:12.3f}{found['peak']:12.3f}{found['partition']:14.3f}"
        )
        print(f"{way:12}{numbers}")


def main() -> None:
    """Measure each way and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--json", action="store_true", help="print one object on the last line")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        settings = Settings.parse(arguments.settings)
    except ValueError as error:
        parser.error(str(error))
    if arguments.way:
        print(json.dumps(measure(arguments.way, settings)), flush=True)
        os._exit(0)
    results = {}
    for way in settings.ways.split(","):
        ranks = run_ranks(way, arguments.settings, settings)
        results[way] = {name: max(rank[name] for rank in ranks) for name in ranks[0]}
    print(f"{next(iter(results.values()))['parameters']:,} trained parameters, {settings.ranks} ranks")
    print_table(results)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
