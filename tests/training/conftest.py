"""Runs of `toy.py` in processes of their own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TOY = Path(__file__).with_name("toy.py")
TIMEOUT = 800


@dataclass
class Outcome:
    """Exit code and output of each rank."""

    codes: list[int]
    outputs: list[str]

    def check(self, code: int = 0) -> None:
        assert self.codes == [code] * len(self.codes), "\n".join(self.outputs)[-6000:]


def _find_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def clean_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def free_port() -> int:
    return _find_port()


@pytest.fixture(scope="session")
def find_port() -> Callable[[], int]:
    return _find_port


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return clean_environment()


@pytest.fixture(scope="session")
def run_toy() -> Callable[..., Outcome]:
    """`run_toy(specs, ranks)`: the runs of `specs`, one after the other, in `ranks` processes over gloo."""

    def run(specs: list[dict[str, Any]], ranks: int = 1) -> Outcome:
        port = str(_find_port())
        processes = []
        for rank in range(ranks):
            env = clean_environment()
            if ranks > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, str(TOY), json.dumps(specs)]
            processes.append(
                subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        try:
            outputs = [process.communicate(timeout=TIMEOUT)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        return Outcome([process.returncode for process in processes], outputs)

    return run


def trace(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, without what depends on the clock."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]


@pytest.fixture(scope="session")
def read_trace() -> Callable[[Path], list[dict[str, Any]]]:
    return trace
