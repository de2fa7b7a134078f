import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOOL = Path(__file__).parents[2] / "tools" / "check_parity.py"


def run(*arguments: str | Path, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_the_folder_that_the_environment_names(shared: Path) -> None:
    code, lines = run("--json", DI4C_SHARED=str(shared))
    assert code == 0
    last = json.loads(lines[-1])
    assert (last["failed"], last["not_computed"]) == (0, 0)
    assert set(last["cases"]) == {path.stem for path in (shared / "golden").glob("*.npz")}
    assert {f"{case} {result}" for case, result in last["cases"].items()} <= set(lines)
    assert sum(line.endswith("  ok") for line in lines) > 300  # arrays


def test_a_wrong_array_a_short_file_and_an_unknown_case(shared: Path, tmp_path: Path) -> None:
    for name in ("lm_dit.npz", "lm_dit.safetensors", "lm_loss.npz", "maskgit_loss.npz"):
        shutil.copyfile(shared / "golden" / name, tmp_path / name)
    arrays = dict(np.load(tmp_path / "maskgit_loss.npz"))
    arrays["c00_grad_logits_student"][0, 0, 0] += 1e-4
    np.savez(tmp_path / "maskgit_loss.npz", **arrays)
    (tmp_path / "lm_loss.npz").write_bytes((tmp_path / "lm_loss.npz").read_bytes()[:5000])
    np.savez(tmp_path / "something_else.npz", meta="{}")
    code, lines = run(tmp_path)
    assert code == 1
    assert {"lm_dit ok", "lm_loss FAILED", "maskgit_loss FAILED", "something_else not computed"} <= set(lines)
    (wrong,) = [line for line in lines if line.endswith("FAILED") and "c00_grad_logits_student" in line]
    assert "1.00e-04" in wrong


@pytest.mark.parametrize("arguments", [("--json",), ()])
def test_nothing_to_read(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, lines = run(tmp_path, *arguments)
    assert code == 2 and f"no .npz file in {tmp_path}" in lines[-1]
