"""The launch script for images as codes, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from di4c_lm.core import image_cli
from di4c_lm.domains.codes.report import load_run, settings_of
from di4c_lm.domains.codes.settings import ImagenetConfig

ROOT = Path(__file__).parents[2]
TINY = (
    "vqgan.model.ch=8",
    "vqgan.pretrain.steps=2",
    "model.hidden_size=16",
    "model.num_blocks=2",
    "model.mlp_size=16",
    "teacher.pretrain.steps=2",
    "objective.num_lambdas=2",
    "objective.consistency_samples=1",
    "train.log_every=1",
    "train.micro_batch_size=2",
    "run.device=cpu",
    "run.threads=1",
)


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DI4C_CACHE": str(folder / "cache"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "launch" / "train_imagenet.py"), *TINY, *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_a_run_leaves_what_a_run_leaves_and_goes_on_where_it_was_left(tmp_path: Path) -> None:
    whole = launch(tmp_path, f"run.dir={tmp_path / 'whole'}", "train.steps=3", "eval.skip=true")
    assert whole.returncode == 0, whole.stderr[-3000:]
    run = tmp_path / "whole"
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "student", "parts.json"} <= {p.name for p in run.iterdir()}
    losses = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "distil", "consistency", "data_corr", "data_marginal"} <= set(losses[-1])
    cached = tmp_path / "cache" / "imagenet"
    assert [len(list((cached / kind).iterdir())) for kind in ("vqgans", "codes", "teachers")] == [1, 1, 1]
    first = launch(tmp_path, f"run.dir={tmp_path / 'cut'}", "train.steps=1", "eval.skip=true")
    assert first.returncode == 0 and "vqgan: " not in first.stderr  # from the cache
    second = launch(tmp_path, f"run.dir={tmp_path / 'cut'}", "train.steps=3", "eval.skip=true")
    assert second.returncode == 0, second.stderr[-3000:]
    again = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert again[-1]["loss"] != losses[0]["loss"]
    assert set(load_file(tmp_path / "cut" / "student" / "model.safetensors")) == set(
        load_file(run / "student" / "model.safetensors")
    )
    config = image_cli.load(ImagenetConfig, TINY, ROOT / "configs", "train_imagenet")
    teacher, student = load_run(run, settings_of(config.eval), "cpu").samplers
    for sampler in (teacher, student):
        assert sampler.sample(3, 2, 0, None).images.shape == (3, 8, 8, 1)
    classes = ("lambda.path=classes", "lambda.codebook_size=5", "lambda.trunk=frozen")
    classed = launch(tmp_path, f"run.dir={tmp_path / 'classes'}", "train.steps=2", "eval.skip=true", *classes)
    assert classed.returncode == 0, classed.stderr[-3000:]
    weights = load_file(tmp_path / "classes" / "student" / "model.safetensors")
    before = load_file(next((cached / "teachers").iterdir()) / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    assert float(weights["latent_head.table"].softmax(1).amax(1).max()) > 0.9, "a code has a class"
    student = load_run(tmp_path / "classes", settings_of(config.eval), "cpu").samplers[1]
    assert student.sample(3, 2, 0, None).images.shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    "words, message",
    [
        (["data.path=/nowhere"], "/nowhere: expected digits"),
        (["data.path=patches"], "vqgan.model reads images of (8, 8, 1)"),
        (["lambda.path=classes"], "lambda.codebook_size must be at least 1 when lambda.path=classes"),
        (["objective.num_lambdas=many"], "objective.num_lambdas"),
        (["teacher.label_drop=2"], "label_drop must be"),
    ],
)
def test_bad_input_ends_with_status_2(tmp_path: Path, words: list[str], message: str) -> None:
    done = launch(tmp_path, f"run.dir={tmp_path / 'run'}", *words)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: " in done.stderr and message in done.stderr


@pytest.mark.parametrize("name", ["imagenet_digits", "imagenet_paper"])
def test_the_recipes_are_read(name: str) -> None:
    config = image_cli.load(ImagenetConfig, [f"experiment={name}"], ROOT / "configs", "train_imagenet")
    paper = name == "imagenet_paper"
    assert config.objective.num_lambdas == (32 if paper else 16)
    if paper:
        assert (config.optim.lr, config.optim.betas, config.train.steps) == (1e-5, (0.9, 0.96), 30_000)
        assert (config.latent.path, config.latent.inject_at, config.objective.label_drop) == ("token", 0, 0.1)
