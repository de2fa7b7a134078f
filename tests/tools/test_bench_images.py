import json
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "bench_images.py"
SMALL = ("L=2", "B=2", "size=4", "channels=1", "S=8", "width=4", "multipliers=1", "blocks=1", "threads=1", "device=cpu")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *words], capture_output=True, text=True, check=False)


def test_both_ways_are_measured() -> None:
    done = run(*SMALL, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for way in ("lean", "plain"):
        assert results[way]["seconds"] > 0
        assert set(results[way]["phases"]) > {"teacher sampling", "student on x_u", "distillation", "backward"}
        assert results[way]["value"] == results[way]["value"]
    assert "peak_gib_above_models" in done.stdout


def test_unknown_settings_are_refused() -> None:
    done = run("breadth=3")
    assert done.returncode == 2
    assert "'breadth=3': expected key=value with a key among L, B, size" in done.stderr
