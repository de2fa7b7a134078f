import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "bench_loss.py"
SMALL = ("D=8", "L=2", "B=2", "S=40", "H=16", "blocks=2", "heads=2", "threads=1", "device=cpu")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *arguments]
    return subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("more", [(), ("path=adaln", "inject_at=1", "matmul=bf16", "repeat=2")])
def test_the_last_line_is_one_object(more: tuple[str, ...]) -> None:
    done = run(*SMALL, *more, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for way in ("lean", "plain"):
        phases = found[way]["phases"]
        assert set(phases) == {"teacher sampling", "student on x_u", "student on x_t", "loss", "backward"}
        assert all(seconds > 0 for seconds in phases.values())
        assert sum(phases.values()) == pytest.approx(found[way]["seconds"], rel=1e-6)
        assert found[way]["peak_gib_above_models"] >= 0
    assert found["ratio"]["seconds"] == pytest.approx(found["lean"]["seconds"] / found["plain"]["seconds"])


@pytest.mark.parametrize("wrong", ["depth=3", "D", "D=many"])
def test_a_setting_that_cannot_be_is_refused(wrong: str) -> None:
    done = run(wrong)
    assert done.returncode == 2
    assert wrong.split("=")[-1] in done.stderr
