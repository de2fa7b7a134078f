"""A day on a GPU, at a size that takes a CPU seconds, where only torch and NumPy are installed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.runs.bench.gpu.trial import attempt, fastest, matrix_rate, sized, teraflops

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
ABSENT = (
    *("deepspeed", "datasets", "transformers", "tokenizers", "huggingface_hub", "safetensors", "jaxtyping", "beartype"),
    *("yaml", "tqdm", "PIL", "scipy", "sklearn", "sentencepiece", "wandb", "peft"),
)
BLOCKED = f"""
import sys
from importlib.machinery import PathFinder

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else super().find_spec(name, path, target)

sys.meta_path = [Present if finder is PathFinder else finder for finder in sys.meta_path]
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, in a folder of its own, and in its processes no package but those that torch needs."""
    (folder / "sitecustomize.py").write_text(BLOCKED, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, str(ROOT / "tools" / "gpu_day.py"), "device=cpu", "threads=1", *arguments]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def errors(found: Any) -> Iterator[str]:
    """All that stands under `error`."""
    if isinstance(found, dict):
        for name, value in found.items():
            yield from [value] if name == "error" else errors(value)


def test_all_parts_run_with_torch_and_numpy_alone(tmp_path: Path) -> None:
    done = run(tmp_path, "scale=0.02", "minutes=4", "compile=false", "--json")
    day = json.loads(done.stdout.splitlines()[-1])
    assert not [*errors(day)]
    assert done.returncode == 0, done.stderr
    assert day == json.loads((tmp_path / "gpu_day.json").read_text(encoding="utf-8"))
    assert day["machine"]["torch"] == torch.__version__ and day["machine"]["name"] and day["scale"] == 0.02
    parts = day["parts"]
    assert list(parts) == ["exact", "train", "sample", "decoder", "quality"]
    assert min(part["seconds"] for part in parts.values()) > 0
    found = {name: part["results"] for name, part in parts.items()}
    assert found["exact"]["within"] == {"float32": True, "bfloat16": True}
    exact, rounded = found["exact"]["device float32"], found["exact"]["device bfloat16"]
    assert all(0 <= exact[name] < 1e-4 < rounded[name] < 0.5 for name in exact if name.endswith("gradient"))
    assert exact["ancestral equal"] > 0.9 and "attention math" in exact
    assert found["train"]["lean, largest batch"]["batch"] == 2
    assert min(found["train"][f"{way}, batch 1"]["share_of_matrix_rate"] for way in ("lean", "plain")) > 0
    assert (
        found["sample"]["teacher, batch 16"]["of_teacher"] == 1 < found["sample"]["sequential, batch 1"]["of_teacher"]
    )
    assert found["decoder"]["model"]["layers"] == found["decoder"]["model"]["layers_wanted"]
    assert found["quality"]["denoiser trained"]["updates"] > 1
    assert found["quality"]["class chain, 1 steps"]["nll"] > 0


def test_a_part_that_is_stopped_says_so_and_the_next_one_runs(tmp_path: Path) -> None:
    done = run(tmp_path, "scale=0.02", "minutes=0.002", "parts=[decoder,exact]", "--json")
    assert done.returncode == 1
    day = json.loads(done.stdout.splitlines()[-1])
    assert [*errors(day)] == ["stopped after 0.002 minutes"] * 2
    assert "exact: stopped after 0.002 minutes" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("scale=0.5", "scale must be at most 0.1 on a CPU, got 0.5"),
        ("parts=train,none", "parts must be some of exact,train,sample,decoder,quality, got 'train,none'"),
        ("minutes=0", "minutes"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, wrong: str, said: str) -> None:
    done = run(tmp_path, wrong)
    assert done.returncode == 2 and said in done.stderr


def test_a_trial_that_fails_is_an_error_and_not_the_end() -> None:
    assert attempt(lambda: {"seconds": 1.0}) == {"seconds": 1.0}

    def fails() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    assert attempt(fails) == {"error": "OutOfMemoryError: CUDA out of memory."}


def test_products_are_counted_those_in_place_too() -> None:
    left, right, into = torch.ones(3, 5, requires_grad=True), torch.ones(5, 7), torch.zeros(3, 7)
    assert teraflops(lambda: left @ right) == 2 * 3 * 5 * 7 / 1e12
    assert teraflops(lambda: (left @ right).sum().backward()) == 2 * 2 * 3 * 5 * 7 / 1e12
    assert teraflops(lambda: into.addmm_(left.detach(), right)) == 2 * 3 * 5 * 7 / 1e12


def test_sizes_are_multiples_and_never_below_the_least() -> None:
    assert (sized(1024, 1.0), sized(1024, 0.1, 8, 8), sized(12, 0.01, 2)) == (1024, 104, 2)


def test_the_matrix_rate_is_that_of_its_seconds() -> None:
    calls: list[int] = []
    assert fastest(lambda: calls.append(1), CPU, repeat=4) >= 0 and len(calls) == 5
    assert 0 < matrix_rate(CPU, torch.float32)["teraflops"] < 1000
