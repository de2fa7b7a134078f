"""Ranks that work together under a watch, one of which misbehaves: `python watched.py FOLDER '[{...}, ...]'`, all scenarios at once.

A scenario: its `name`, `how` the rank `culprit` of three misbehaves, the watch's `timeout`, and a free `port`. `how`: `none`; `kill` or
`stop` (a signal to itself); `hang` (between two collectives); `fail` (an error of its own); `pause` (stopped for half the timeout). Each
rank writes to FOLDER/<name>_<rank>.log; the exit codes and seconds by scenario are printed as JSON.
"""

import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from di4c_lm.training.distributed import Watchdog, init_distributed


def misbehave(how: str, timeout: float) -> None:
    if how == "pause" and (own := os.getpid()) and os.fork() == 0:
        time.sleep(timeout / 2)
        os.kill(own, signal.SIGCONT)
        os._exit(0)
    if how in ("kill", "stop", "pause"):
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    if how == "hang":
        time.sleep(1000)
    if how == "fail":
        raise ValueError("a shard is missing")


def work(how: str, culprit: int, timeout: float) -> None:
    world = init_distributed("cpu")
    with Watchdog(timeout) as watch:
        for step in range(1, 6):
            watch.beat(f"the data of step {step}")
            if step == 3 and world.rank == culprit:
                misbehave(how, timeout)
            watch.beat(f"the sum of step {step}")
            dist.all_reduce(torch.ones(1))
    print("done", flush=True)


def start(folder: Path, scenario: dict[str, Any], rank: int, ranks: int) -> int:
    """The process of a new rank."""
    if pid := os.fork():
        return pid
    log = os.open(folder / f"{scenario['name']}_{rank}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(scenario["port"])}
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        work(scenario["how"], scenario["culprit"], scenario["timeout"])
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(folder: Path, scenarios: list[dict[str, Any]]) -> None:
    started = time.monotonic()
    pids = {
        s["name"]: [start(folder, s, rank, s.get("ranks", 3)) for rank in range(s.get("ranks", 3))] for s in scenarios
    }
    ended: dict[str, dict[str, Any]] = {}
    for scenario in scenarios:
        found = {}
        for rank, pid in enumerate(pids[scenario["name"]]):
            if rank == scenario["culprit"] and scenario["how"] == "stop":
                continue
            found[rank] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        ended[scenario["name"]] = {"codes": found, "seconds": time.monotonic() - started}
    for scenario in scenarios:
        if scenario["how"] == "stop":
            os.kill(pids[scenario["name"]][scenario["culprit"]], signal.SIGKILL)
    print(json.dumps(ended))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
