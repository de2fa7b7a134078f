"""Measurements in processes of their own, so that no way of doing a thing sees the memory or the threads of another."""

import json
import os
import subprocess
import sys
from typing import Any


def run_apart(script: str, way: str, words: list[str], *, threads: int) -> dict[str, Any]:
    """The JSON object on the last line of `script --way way words`, run on `threads` CPU threads; ends the program if that fails."""
    command = [sys.executable, script, "--way", way, *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the {way} way ended with exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
