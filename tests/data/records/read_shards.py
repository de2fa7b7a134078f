"""`python read_shards.py <shards> <log>`: the ranks of a run that is killed and goes on with other numbers of ranks, the data layer alone.

Each part of the run is so many processes, which read micro-batches, and log `step rank epoch/sample_id ...` line by line, as unbuffered
writes. Every 5 steps, once all ranks have done them, rank 0 replaces the state. A part ends by SIGKILL to all ranks at a random moment
after some steps, or at the end. Then the next part goes on from the state, and what was logged past it is taken back, as a run's updates
are.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from di4c_lm.core.files import write_json
from di4c_lm.data.batches import BatchStream
from di4c_lm.data.records.shards import Shards, ShardSource

GLOBAL_BATCH, STEPS, SAVE_EVERY = 8, 60, 5
PARTS = ((1, 2), (11, 1), (24, 2), (33, 4), (41, 2), (STEPS, 1))  # step to be killed after, ranks


def step_of(state: Path) -> int:
    return json.loads(state.read_text(encoding="utf-8"))["step"] if state.exists() else 0


def read(shards: Path, folder: Path, rank: int, ranks: int) -> None:
    accumulation = 2 if ranks == 1 else 1
    stream = BatchStream(
        ShardSource(Shards.read(shards), seed=11),
        micro_batch_size=GLOBAL_BATCH // accumulation // ranks,
        gradient_accumulation=accumulation,
        rank=rank,
        world_size=ranks,
    )
    state = folder / "state.json"
    first = step_of(state)
    if first:
        stream.load_state_dict(json.loads(state.read_text())["batches"])
    log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for step in range(first, STEPS):
        for _ in range(accumulation):
            batch = next(stream)
            names = [f"{e}/{n}" for e, n in zip(batch.epoch.tolist(), batch.sample_id.tolist(), strict=True)]
            os.write(log, " ".join([str(step), str(rank), *names, "\n"]).encode())
        if rank == 0 and (step + 1) % SAVE_EVERY == 0:
            while len([line for line in logged(folder) if line.startswith(f"{step} ")]) < accumulation * ranks:
                time.sleep(0.001)
            write_json(state, {"step": step + 1, "batches": stream.state_dict()})
        time.sleep(0.002)


def logged(folder: Path) -> list[str]:
    path = folder / "log"
    return [line for line in path.read_text().splitlines() if line.endswith(" ")] if path.exists() else []


def take_back(folder: Path) -> None:
    kept = [line for line in logged(folder) if int(line.split()[0]) < step_of(folder / "state.json")]
    (folder / "log").write_text("".join(line + "\n" for line in kept))


def start(shards: Path, folder: Path, rank: int, ranks: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            read(shards, folder, rank, ranks)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def main(shards: Path, folder: Path) -> None:
    rng, kills = random.Random(0), 0
    for until, ranks in PARTS:
        take_back(folder)
        children = [start(shards, folder, rank, ranks) for rank in range(ranks)]
        if until < STEPS:
            while max((int(line.split()[0]) for line in logged(folder)), default=0) < until:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.01)
            for child in children:
                os.kill(child, signal.SIGKILL)
        for child in children:
            _, status = os.waitpid(child, 0)
            kills += os.WIFSIGNALED(status)
            assert os.WIFSIGNALED(status) or status == 0
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
