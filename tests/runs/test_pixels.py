"""The launch script for images, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from di4c_lm.domains.pixels.model import load_run

LAUNCH = Path(__file__).parents[2] / "launch" / "train_cifar10.py"
TINY = (
    "model.width=4",
    "model.multipliers=[1]",
    "model.attention_scale=-1",
    "train.steps=2",
    "train.log_every=1",
    "train.micro_batch_size=2",
    "run.device=cpu",
    "run.threads=1",
)


CODES = (
    "lambda={law: codebook, path: head, window: 16, codebook_size: 0, relations: 1, trunk: train}",
    "objective=di4c",
    "objective.num_lambdas=2",
    "objective.marginal_weight=0.5",
    "objective.distil_weight=1",
    "objective.consistency_weight=1",
)


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DI4C_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(LAUNCH), *TINY, f"run.dir={folder / 'run'}", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_a_run_leaves_what_a_run_leaves_and_bad_input_ends_with_status_2(tmp_path: Path) -> None:
    done = launch(
        tmp_path, "teacher.kind=train", "teacher.pretrain.steps=2", "teacher.pretrain.batch_size=4", "eval.skip=true"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "student", "teacher"} <= {
        path.name for path in run.iterdir()
    }
    first, student = (sampler.model.denoiser.state_dict() for sampler in load_run(run).samplers(8))
    assert all(torch.equal(value, student[name]) for name, value in first.items()), "the trunk is the teacher's"
    assert float(student["latent_head.table"].softmax(1).amax(1).min()) > 0.9, "each level has its class"
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "distil", "consistency", "data_corr", "data_marginal"} <= set(losses[-1])
    assert len(list((tmp_path / "cache" / "teachers").iterdir())) == 1
    teacher, student = load_run(run).samplers(8)
    for sampler in (teacher, student):
        assert sampler.sample(3, 2, 0, None).images.shape == (3, 8, 8, 1)
    coded = launch(tmp_path, "teacher.kind=random", "eval.skip=true", f"run.dir={tmp_path / 'codes'}", *CODES)
    assert coded.returncode == 0, coded.stderr[-3000:]
    last = json.loads((tmp_path / "codes" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["data_marginal"] > 0 and last["consistency"] != 0
    bad = launch(tmp_path, "data.source=/nowhere/at/all")
    assert bad.returncode == 2
    assert "error: /nowhere/at/all" in bad.stderr
    bad = launch(tmp_path, "eval.steps=[0]")
    assert bad.returncode == 2
    assert "error: eval.steps must be" in bad.stderr


@pytest.mark.slow
def test_the_report_measures_teacher_and_student(tmp_path: Path) -> None:
    done = launch(tmp_path, "teacher.kind=random", "eval.steps=[1,2]", "eval.num_samples=48", "eval.bootstrap=50")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "student" in done.stderr
    assert {"images.json", "images.csv", "images.png", "samples.png"} <= {
        path.name for path in (tmp_path / "run" / "report").iterdir()
    }
