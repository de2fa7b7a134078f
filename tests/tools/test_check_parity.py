import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

TOOL = Path(__file__).parents[2] / "tools" / "check_parity.py"
COMPUTED = (
    "lm_dit",
    "lm_dit_di4c",
    "lm_loss",
    "lm_sampling",
    "maskgit_denoise",
    "maskgit_loss",
    "maskgit_net",
    "maskgit_net_student",
    "maskgit_schedules",
    "tauldr_loss",
    "tauldr_net",
    "tauldr_net_lam",
    "tauldr_transition_S16",
    "tauldr_transition_S256",
)


def run(*folder: Path, **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, str(TOOL), *map(str, folder)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


def test_every_golden_case_we_compute_passes(shared: Path) -> None:
    code, lines = run(DI4C_SHARED=str(shared))
    assert code == 0
    for path in (shared / "golden").glob("*.npz"):
        verdict = "ok" if path.stem in COMPUTED else "not computed"
        assert f"{path.stem} {verdict}" in lines or path.stem not in COMPUTED
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


def test_nothing_to_read(tmp_path: Path) -> None:
    code, lines = run(tmp_path)
    assert code == 2 and f"no .npz file in {tmp_path}" in lines[-1]


def plain_maskgit(
    student_BLDS: Tensor, teacher_BDS: Tensor, upper_BLDS: Tensor, x_0: Tensor, x_BID: Tensor, **o: Any
) -> dict[str, Tensor]:
    """The reference's formulas for ImageNet, written out; settings r, r_delta, weight, use_cv."""
    log_p = student_BLDS.log_softmax(-1)
    log_L = math.log(log_p.shape[1])
    log_mean = log_p.logsumexp(1) - log_L

    def cor(x: Tensor) -> Tensor:
        joint = log_p.gather(3, x[:, None, :, None].expand(-1, log_p.shape[1], -1, 1)).squeeze(3).sum(2)
        product = log_mean.gather(2, x[..., None]).squeeze(2).sum(1)
        return log_L - joint.logsumexp(1) + o["use_cv"] * product

    def kl(p: Tensor, log_q: Tensor) -> Tensor:
        return (p * (p.log() - log_q)).sum((-1, -2))

    high = (o["r"] >= 1 - o["r_delta"]).double()
    teacher = teacher_BDS.softmax(-1)
    found = {
        "r": o["r"],
        "r_weight": high,
        "time_coeff": o["weight"],
        "data_loss_cor": cor(x_0),
        "data_loss_indep": o["use_cv"] * kl(teacher, log_mean),
        "consis_loss_cor": torch.stack([cor(x) for x in x_BID.unbind(1)]).mean(0),
        "consis_loss_indep": o["use_cv"] * kl(upper_BLDS.softmax(-1).mean(1), log_mean),
        "distil_loss": high / o["r_delta"] * kl(teacher[:, None], log_p).mean(1),
    }
    found["data_loss"] = o["weight"] * found["data_loss_cor"] + found["data_loss_indep"]
    found["consis_loss"] = (1 - high) * (found["consis_loss_cor"] + found["consis_loss_indep"])
    found["loss"] = (found["data_loss"] + found["consis_loss"] + found["distil_loss"]).mean()
    return found


def test_another_size_and_seed(tmp_path: Path) -> None:
    """A file of the format at sizes of our own, from the reference's formulas in float64."""
    rng = torch.Generator().manual_seed(0)
    num_batch, num_lambdas, side, num_states, r_delta = 2, 5, 2, 6, 0.2
    shape = (num_batch * num_lambdas, side * side, num_states)
    student, upper = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    teacher = torch.randn(num_batch, *shape[1:], generator=rng, dtype=torch.float64)
    code = torch.randint(num_states, (num_batch, side, side), generator=rng)
    samples = torch.randint(num_states, (num_batch, num_lambdas, side * side), generator=rng)
    runs = {
        "c00": {"r": [0.3, 0.9], "alpha_t": "linear", "use_cv": True},
        "c01": {"r": [0.85, 0.1], "alpha_t": "const", "use_cv": False},
    }
    arrays = {"logits_teacher": teacher, "logits_student": student, "logits_student_teacher": upper}
    arrays |= {"code": code, "x0_sampled": samples}
    for name, settings in runs.items():
        r = torch.tensor(settings["r"], dtype=torch.float64)
        weight = 0.3 * (1 - r if settings["alpha_t"] == "linear" else torch.ones_like(r))
        leaf = student.clone().requires_grad_()
        rows = (num_batch, num_lambdas)
        found = plain_maskgit(
            leaf.unflatten(0, rows),
            teacher,
            upper.unflatten(0, rows),
            code.flatten(1),
            samples,
            r=r,
            r_delta=r_delta,
            weight=weight,
            use_cv=settings["use_cv"],
        )
        (found["grad_logits_student"],) = torch.autograd.grad(found["loss"], leaf)
        arrays |= {f"{name}_{key}": value.detach() for key, value in found.items()}
    numpy = {k: v.float().numpy() if v.is_floating_point() else v.numpy() for k, v in arrays.items()}
    numpy["meta"] = np.array(json.dumps({"r_delta": r_delta, "alpha_const": 0.3, "cases": runs}))
    np.savez(tmp_path / "maskgit_loss.npz", **numpy)  # pyright: ignore[reportArgumentType]
    code, lines = run(tmp_path)
    assert code == 0, lines
    assert lines[-1] == "maskgit_loss ok"


@pytest.mark.parametrize("missing", ["c00_loss", "logits_teacher"])
def test_a_missing_array_is_no_pass(shared: Path, tmp_path: Path, missing: str) -> None:
    arrays = dict(np.load(shared / "golden" / "maskgit_loss.npz"))
    del arrays[missing]
    np.savez(tmp_path / "maskgit_loss.npz", **arrays)
    code, lines = run(tmp_path)
    assert code == 1 and "maskgit_loss FAILED" in lines
    assert any(missing in line for line in lines)
