"""Kills a small training again and again, and compares what comes of it with an unbroken run, bit for bit:

    python tools/kill_trial.py kills=30 ranks=2 stage=2 [--json]

Di4C on random tokens, `ranks` processes over gloo. Every second kill (SIGKILL, to all ranks at once or to one, in turn) waits for a save
and falls within it; the others fall at a random moment. Each time the run is started again in the same folder, until it has taken
`steps` updates; then another begins, until there were `kills`. Exit status 1 if any number differs. `--json` prints one object on the
last line.
"""

import contextlib
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch

from di4c_lm.core.compose import parse
from di4c_lm.core.settings import at_least, section, setting
from di4c_lm.data.batches import BatchStream, PackedSource
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.training.distributed import free_port, init_distributed
from di4c_lm.training.loop import train
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

STATES, LENGTH, GLOBAL_BATCH = 41, 12, 8
_FORK = multiprocessing.get_context("fork")
ATTEMPT_S = 600.0  # seconds that an attempt may take


@section
class Settings:
    """Kills a small training again and again, and compares what comes of it with an unbroken run, bit for bit."""

    kills: int = setting(30, "in all, over as many runs as that takes")
    ranks: Literal[1, 2, 4, 8] = setting(2, "processes of a run, over gloo")
    stage: Literal[0, 1, 2, 3] = setting(2, "of ZeRO")
    steps: int = setting(40, "updates of a run")
    save_every: int = setting(2, "updates between two checkpoints")
    seed: int = setting(0, "of the moments")
    dir: str = setting("", "where the runs live; absent: a temporary folder")
    json: bool = setting(False, "print the outcome as one object on the last line")

    def __post_init__(self) -> None:
        at_least(self, 0, "kills", "seed")
        at_least(self, 1, "steps", "save_every")


def work(run_dir: Path, settings: Settings) -> None:
    """A rank's part of the run in `run_dir`, to its end."""
    from safetensors.torch import save_file

    world = init_distributed("cpu")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = DIT(DitConfig(hidden_size=32, num_blocks=2, num_heads=2, cond_dim=8), num_states=STATES)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    student = AdaLNSettings().over(teacher, torch.Generator().manual_seed(0))
    objective = Di4C(num_lambdas=2).build(student, MaskedProcess(STATES - 1), seed=0, teacher=teacher)
    tokens = np.random.default_rng(0).integers(STATES - 1, size=(50, LENGTH))
    micro = GLOBAL_BATCH // world.size
    trained = train(
        objective,
        BatchStream(PackedSource(tokens, seed=0), micro_batch_size=micro, rank=world.rank, world_size=world.size),
        train=TrainConfig(steps=settings.steps, micro_batch_size=micro, save_every=settings.save_every, log_every=1),
        optim=OptimConfig(warmup_steps=4, ema_decay=0.9),
        zero=ZeroConfig(stage=settings.stage),
        run_dir=run_dir,
        device="cpu",
    )
    if world.is_main:
        for name, weights in {"raw": trained.raw, "ema": trained.ema}.items():
            save_file({key: value.clone() for key, value in weights.items()}, run_dir / f"{name}.safetensors")


def start(run_dir: Path, settings: Settings) -> list[ForkProcess]:
    """New ranks, forked from this process so that all is imported already; they write to `run_dir`/rank_<r>.log."""
    run_dir.mkdir(parents=True, exist_ok=True)
    port = free_port()
    ranks = [_FORK.Process(target=_rank, args=(run_dir, settings, rank, port)) for rank in range(settings.ranks)]
    for rank in ranks:
        rank.start()
    return ranks


def _rank(run_dir: Path, settings: Settings, rank: int, port: int) -> None:
    log = os.open(run_dir / f"rank_{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if settings.ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(settings.ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    work(run_dir, settings)


def finish(ranks: list[ForkProcess], run_dir: Path) -> None:
    """Wait for the end of a run; one that fails ends the program."""
    for rank in ranks:
        rank.join()
    if any(rank.exitcode for rank in ranks):
        raise SystemExit(
            f"the run in {run_dir} failed:\n{(run_dir / 'rank_0.log').read_text(encoding='utf-8')[-3000:]}"
        )


def steps_done(run_dir: Path) -> int:
    """Lines of metrics.jsonl."""
    metrics = run_dir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def unfinished(run_dir: Path) -> set[int]:
    """The checkpoints that are being written, or were when a kill came, by their inodes."""
    found = set()
    for path in run_dir.glob("checkpoints/step_*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            found.add(path.stat().st_ino)
    return found


def strike(run_dir: Path, ranks: list[ForkProcess], settings: Settings, moments: random.Random, number: int) -> str:
    """Let the run go on and kill it: `finished` if it came to its end before, `save` if a save was under way, else `step`.

    Odd numbers wait for a save; every third spares all ranks but one.
    """
    begun, target, old = steps_done(run_dir), moments.randint(0, 5), unfinished(run_dir)
    deadline = time.monotonic() + ATTEMPT_S
    while time.monotonic() < deadline:
        if not ranks[0].is_alive():
            for rank in ranks:
                rank.join()
            return "finished"
        if number % 2 and unfinished(run_dir) - old:
            time.sleep(moments.random() * 0.01)
            break
        if number % 2 == 0 and steps_done(run_dir) < begun + target:
            time.sleep(0.001)
        elif number % 2 == 0:
            time.sleep(moments.random() * 0.3)
            break
    for rank in [moments.choice(ranks)] if number % 3 == 0 else ranks:
        rank.kill()
    time.sleep(0.2)  # if one was spared, it meets the loss of the others, until the launcher ends it
    for rank in ranks:
        rank.kill()
        rank.join()
    return "save" if unfinished(run_dir) - old else "step"


def differences(run_dir: Path, unbroken: Path) -> list[str]:
    """What differs between two finished runs: lines of metrics.jsonl but for the clock's, weights and their average."""
    from safetensors.torch import load_file

    found = []
    lines = [[json.loads(line) for line in (d / "metrics.jsonl").read_text().splitlines()] for d in (run_dir, unbroken)]
    plain = [[{key: value for key, value in line.items() if key != "tokens_per_s"} for line in run] for run in lines]
    if len(plain[0]) != len(plain[1]):
        found.append(f"{len(plain[0])} steps, not {len(plain[1])}")
    found += [f"step {b['step']}" for a, b in zip(*plain, strict=False) if a != b]
    for name in ("raw", "ema"):
        ours, theirs = (load_file(d / f"{name}.safetensors") for d in (run_dir, unbroken))
        found += [f"{name} {key}" for key in theirs if not torch.equal(ours[key], theirs[key])]
    return found


def trial(folder: Path, settings: Settings) -> dict[str, Any]:
    """Kill and compare; the counts."""
    unbroken, moments = folder / "unbroken", random.Random(settings.seed)
    finish(start(unbroken, settings), unbroken)
    kills = in_save = starts = runs = 0
    found: list[str] = []
    while kills < settings.kills or runs == 0:
        run_dir, runs, finished = folder / f"killed_{runs}", runs + 1, False
        while not finished:
            ranks, starts = start(run_dir, settings), starts + 1
            if kills < settings.kills:
                when = strike(run_dir, ranks, settings, moments, kills)
                finished = when == "finished"
                kills += not finished
                in_save += when == "save"
            else:
                finish(ranks, run_dir)
                finished = True
        found += [f"{run_dir.name}: {what}" for what in differences(run_dir, unbroken)]
    return {
        "kills": kills,
        "kills_during_a_save": in_save,
        "resumes": starts - runs,
        "runs": runs,
        "steps_compared": runs * settings.steps,
        "differences": found,
    }


def main(argv: Sequence[str]) -> int:
    """Run the trial and print; the exit status."""
    settings = parse(Settings, argv, program="python tools/kill_trial.py")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # noqa: F401 (once, for all that are forked)

    with tempfile.TemporaryDirectory() as temporary:
        result = trial(Path(settings.dir or temporary), settings)
    print(
        f"{result['kills']} kills, {result['kills_during_a_save']} of them during a save; {result['resumes']} resumes in "
        f"{result['runs']} runs; {result['steps_compared']} steps compared with an unbroken run: "
        + (", ".join(result["differences"]) or "no difference")
    )
    if settings.json:
        print(json.dumps(result))
    return 1 if result["differences"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
