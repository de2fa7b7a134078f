"""DeepSpeed behind its fence: the same training at every ZeRO stage and on any number of ranks, and equal to plain PyTorch."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

RELEASE = {"stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}


def load_toy() -> Any:
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = module
    spec.loader.exec_module(module)
    return module


def muon_step(p: torch.Tensor, momentum: torch.Tensor, lr: float, optim: Any) -> None:
    """Muon on one matrix as published, in float64: Nesterov's momentum, five Newton-Schulz iterations, decay, scale by shape."""
    assert p.grad is not None
    momentum.mul_(optim.muon_momentum).add_((1 - optim.muon_momentum) * p.grad)
    x = (optim.muon_momentum * momentum + (1 - optim.muon_momentum) * p.grad).double()
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.T if is_tall else x
    with torch.no_grad():
        p.mul_(1 - lr * optim.weight_decay).sub_((lr * max(1, p.shape[0] / p.shape[1]) ** 0.5 * x).float())


def plain_run(bad: tuple[int, ...] = (), kind: str = "adamw") -> tuple[list[float], dict[str, Any], dict[str, Any]]:
    """The toy run by a loop of plain PyTorch in one process: losses, raw weights, EMA. `bad`: steps that are skipped."""
    toy = load_toy()
    sections = toy.settings({"optim": kind}, 1)
    train, optim = sections["train"], sections["optim"]
    objective = toy.Objective(bad=[], external=False)
    named = {name: p for name, p in objective.student.named_parameters() if p.requires_grad}
    by_muon = {name for name, p in named.items() if kind == "muon" and toy.is_matrix(name) and p.ndim == 2}
    momenta = {name: torch.zeros_like(named[name]) for name in by_muon}
    by_adam = {name: p for name, p in named.items() if name not in by_muon}
    groups = [
        {"params": [p for name, p in by_adam.items() if toy.is_latent(name) == latent], "scale": scale}
        for latent, scale in ((False, 1.0), (True, optim.mixture_lr_scale))
    ]
    adam = torch.optim.AdamW(groups, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay)
    average = {name: p.detach().clone() for name, p in named.items()}
    batches = toy.Batches(train.micro_batch_size, 0, 1)
    losses, updates = [], 0
    for step in range(train.steps):
        for p in named.values():
            p.grad = torch.zeros_like(p)  # what is unused has the gradient zero
        loss, _ = objective(next(batches))
        losses.append(loss.item())
        if step in bad:
            continue
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(named.values()), optim.clip_norm)
        for group in adam.param_groups:
            group["lr"] = optim.learning_rate(step, train.steps) * group["scale"]
        adam.step()
        for name in by_muon:
            rate = optim.learning_rate(step, train.steps) * optim.muon_lr / optim.lr
            muon_step(named[name], momenta[name], rate * (optim.mixture_lr_scale if toy.is_latent(name) else 1), optim)
        updates += 1
        decay = min(optim.ema_decay, (1 + updates) / (10 + updates))
        for name, p in named.items():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    return losses, {name: p.detach() for name, p in named.items()}, average


def check_run(run_dir: Path, lines: list[dict[str, Any]], expected: Any, tolerance: float = 1e-5) -> None:
    losses, raw, average = expected
    assert [line["step"] for line in lines] == list(range(1, len(losses) + 1))
    torch.testing.assert_close([line["loss"] for line in lines], losses, rtol=tolerance, atol=0)
    for name, weights in (("raw", raw), ("ema", average)):
        exported = load_file(run_dir / f"{name}.safetensors")
        for key, value in weights.items():
            error = (exported[key] - value).abs().max() / value.abs().max()
            assert error < tolerance, (name, key, error)
        assert torch.equal(exported["again.weight"], exported["output_layer.linear.weight"])
        assert torch.equal(exported["scale"], torch.full((12,), 0.5))
        assert torch.equal(exported["angles"], torch.linspace(0, 1, 12))


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory, run_toy) -> Path:
    """A folder with runs of one rank; `unmoved`: one whose steps change nothing."""
    folder = tmp_path_factory.mktemp("one_rank")
    specs = {
        **{f"stage {stage}": {"stage": stage} for stage in range(4)},
        **{f"muon {stage}": {"stage": stage, "optim": "muon"} for stage in range(4)},
        "times 0": {"real": True, "path": "times"},
        "unmoved": {"stage": 3, "dtype": "bfloat16", "steps": 2, "lr": 1e-30},
    }
    run_toy([{**spec, "run_dir": str(folder / name)} for name, spec in specs.items()]).check()
    return folder


@pytest.mark.parametrize("name", [f"stage {stage}" for stage in range(4)])
def test_one_rank_trains_like_plain_pytorch(name, one_rank, read_trace):
    check_run(one_rank / name, read_trace(one_rank / name), plain_run())


@pytest.mark.parametrize("stage", range(4))
def test_one_rank_trains_by_muon_like_plain_pytorch(stage, one_rank, read_trace):
    folder = one_rank / f"muon {stage}"
    check_run(folder, read_trace(folder), plain_run(kind="muon"), tolerance=2e-4)


def test_bfloat16_masters_start_from_the_exact_weights(one_rank):
    """A run of steps too small to change anything exports what it began with, not its rounding."""
    initial = dict(load_toy().Objective(bad=[], external=False).student.named_parameters())
    for name in ("raw", "ema"):
        exported = load_file(one_rank / "unmoved" / f"{name}.safetensors")
        assert all(torch.equal(exported[key], value) for key, value in initial.items())


ALIKE = {
    "stage 0": {"stage": 0},
    "stage 1, accumulating": {"stage": 1, "accumulation": 2},
    "stage 2": {"stage": 2},
    "stage 3": {"stage": 3},
    "stage 3, parameters released": {"stage": 3, "accumulation": 2, "config": "release.json"},
    "stage 1, offloaded": {"stage": 1, "offload": True},
    "stage 2, offloaded": {"stage": 2, "offload": True, "accumulation": 2},
    "stage 3, offloaded": {"stage": 3, "offload": True, "accumulation": 2, "config": "release.json"},
}
MUON = {f"muon, {name}": {**ALIKE[name], "optim": "muon"} for name in ALIKE if name != "stage 3"}
BFLOAT16 = {f"bfloat16 {s}": {"stage": s, "dtype": "bfloat16", "accumulation": 2} for s in range(4)}
BFLOAT16_MUON = {"bfloat16 1, muon": {**BFLOAT16["bfloat16 1"], "optim": "muon"}}
TIMES = {"times 3": {"stage": 3, "real": True, "path": "times"}}  # that follow the loss
# The second half of a run, resumed by the same ranks and stage: the folder's name is that of the unbroken run and " again".
HALVES = {
    f"{name} again": spec
    for name, spec in {**ALIKE, **BFLOAT16, **MUON, **BFLOAT16_MUON, **TIMES}.items()
    if name in ("stage 0", "stage 3", *BFLOAT16, *MUON, *BFLOAT16_MUON, *TIMES)
}
REAL = {
    f"{dtype} {stage}, {how}": {
        "real": True,
        "steps": 2,
        "stage": stage,
        "dtype": dtype,
        "path": "token" if stage == 1 else "adaln",
        "checkpointing": how == "recomputed",
        "frozen": stage in (2, 3),
        **({"config": "release.json"} if stage == 3 else {}),
    }
    for dtype in ("float32", "bfloat16")
    for stage in ((0, 1, 2, 3) if dtype == "float32" else (0, 2, 3))
    for how in ("kept", "recomputed")
}
REAL |= {
    f"{dtype} {stage} {path}, kept": {
        "real": True,
        "steps": 2,
        "stage": stage,
        "dtype": dtype,
        "path": path,
        **config,
    }
    for path in ("classes", "sequential")
    for dtype, stage, config in (("float32", 0, {}), ("float32", 3, {"config": "release.json"}), ("bfloat16", 2, {}))
}
BAD = {f"bad {s}": {"stage": s, "bad": [12 * 8 + 7, 13 * 8 + 6]} for s in range(4)}  # in the last rank's share


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, run_toy, one_rank) -> Path:
    """A folder with the runs of all of these by two ranks: one engine after another in the same processes."""
    folder = tmp_path_factory.mktemp("two_ranks")
    (folder / "release.json").write_text(json.dumps({"zero_optimization": RELEASE}))
    alike = {**ALIKE, **BFLOAT16, **MUON, **BFLOAT16_MUON, **TIMES}
    specs = {name: {**spec, "checked_ema": True} for name, spec in alike.items()} | {**BAD, **REAL}
    halves = [(name, {**spec, "checked_ema": True}) for name, spec in HALVES.items()]
    ordered = [*specs.items(), *((name, {**spec, "steps": 10}) for name, spec in halves), *halves]
    ordered += [(f"one to two {stage}", {"stage": stage, "resume": "must"}) for stage in range(4)]
    for stage in range(4):
        shutil.copytree(one_rank / f"stage {stage}", folder / f"one to two {stage}")
        shutil.rmtree(folder / f"one to two {stage}" / "checkpoints" / "step_00000020")
    for _, spec in ordered:
        if "config" in spec:
            spec["config"] = str(folder / spec["config"])
    # The first engine of stage 3 puts DeepSpeed's own `linear` in the place of torch's for the rest of the process: its gradients differ in
    # the last digit on some CPUs.
    ordered.sort(key=lambda named: named[1]["stage"] == 3)
    run_toy([{**spec, "run_dir": str(folder / name)} for name, spec in ordered], ranks=2).check()
    return folder


@pytest.fixture(scope="module")
def two_to_one(tmp_path_factory, run_toy, two_ranks) -> Path:
    """A folder with the last steps of runs of two ranks, by one."""
    folder = tmp_path_factory.mktemp("two_to_one")
    sources = {stage: "stage 1, accumulating" if stage == 1 else f"stage {stage}" for stage in range(4)}
    for stage, name in sources.items():
        shutil.copytree(two_ranks / name, folder / f"two to one {stage}")
        shutil.rmtree(folder / f"two to one {stage}" / "checkpoints" / "step_00000020")
    specs = [{"stage": stage, "resume": "must", "run_dir": str(folder / f"two to one {stage}")} for stage in range(4)]
    run_toy(specs).check()
    return folder


@pytest.mark.parametrize("stage", range(4))
def test_one_rank_goes_on_with_the_run_of_two_and_two_with_that_of_one(stage, two_ranks, two_to_one, read_trace):
    for folder in (two_ranks / f"one to two {stage}", two_to_one / f"two to one {stage}"):
        check_run(folder, read_trace(folder), plain_run())


@pytest.mark.parametrize("name", HALVES)
def test_a_run_resumed_at_any_stage_goes_on_to_the_very_same_losses_weights_and_average(name, two_ranks, read_trace):
    """In float32 and bfloat16. (That the average equals a plain float32 one over the break is checked within the run.)"""
    whole = two_ranks / name.removesuffix(" again")
    assert read_trace(two_ranks / name) == read_trace(whole)
    for file in ("raw.safetensors", "ema.safetensors", "plain_ema.safetensors"):
        ours, theirs = load_file(two_ranks / name / file), load_file(whole / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("name", [name for name in REAL if "recomputed" in name])
def test_activations_that_are_recomputed_change_nothing(name, two_ranks, read_trace):
    """At every stage, also where ZeRO-3 has released the parameters before the backward pass; and λ's path or other parts may be frozen."""
    kept = two_ranks / name.replace("recomputed", "kept")
    rounding = 1e-6 if "float32" in name else 2e-2
    for one, other in zip(read_trace(two_ranks / name), read_trace(kept), strict=True):
        assert one["loss"] > 1e-2
        assert one == pytest.approx(other, rel=rounding, abs=rounding * 1e-2)


@pytest.mark.parametrize("name", [name for name in REAL if "kept" in name])
def test_the_real_objective_moves_all_that_is_trained_and_nothing_else(name, two_ranks):
    tensors = load_file(two_ranks / name / "raw.safetensors")
    before = load_toy().real_objective(REAL[name]).student
    for key, value in before.named_parameters():
        assert torch.equal(tensors[key], value) == (not value.requires_grad), key


@pytest.mark.parametrize("path", ["classes", "sequential"])
def test_a_head_trains_alike_at_stages_0_and_3(path, two_ranks, read_trace):
    zero, three = (read_trace(two_ranks / f"float32 {stage} {path}, kept") for stage in (0, 3))
    assert zero[0]["loss"] > 1
    for one, other in zip(zero, three, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_train_alike_at_every_stage(name, two_ranks, read_trace):
    check_run(two_ranks / name, read_trace(two_ranks / name), plain_run())


@pytest.mark.parametrize("name", MUON)
def test_two_ranks_train_alike_by_muon_at_every_stage(name, two_ranks, read_trace):
    check_run(two_ranks / name, read_trace(two_ranks / name), plain_run(kind="muon"), tolerance=2e-4)


def test_times_that_follow_the_loss_are_the_same_on_two_ranks(one_rank, two_ranks, read_trace):
    one, two = (
        [line["loss"] for line in read_trace(folder)] for folder in (one_rank / "times 0", two_ranks / "times 3")
    )
    torch.testing.assert_close(two, one, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [*MUON, *BFLOAT16_MUON])
def test_muon_keeps_one_moment_of_its_matrices(name, two_ranks):
    toy, held = load_toy(), {"exp_avg": set(), "exp_avg_sq": set()}
    for rank in range(2):
        tensors = load_file(two_ranks / name / "checkpoints" / "step_00000020" / f"rank_{rank:05d}.safetensors")
        for key in tensors:
            kind, *_, parameter = key.split("/")
            if kind in held:
                held[kind].add(parameter)
    matrices = {n for n, p in toy.Student().named_parameters() if toy.is_matrix(n) and p.ndim == 2}
    assert held["exp_avg"] - held["exp_avg_sq"] == matrices


@pytest.mark.parametrize("name", BFLOAT16_MUON)
def test_bfloat16_stays_near_float32_by_muon(name, two_ranks, read_trace):
    losses, _, _ = plain_run(kind="muon")
    torch.testing.assert_close([line["loss"] for line in read_trace(two_ranks / name)], losses, rtol=2e-2, atol=0)


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_stays_near_float32_and_exports_the_float32_masters(name, two_ranks, read_trace):
    losses, _, _ = plain_run()
    torch.testing.assert_close([line["loss"] for line in read_trace(two_ranks / name)], losses, rtol=1e-2, atol=0)
    exported = load_file(two_ranks / name / "raw.safetensors")
    weight = exported["embed.weight"]
    assert weight.dtype == torch.float32 and not torch.equal(weight, weight.bfloat16().float())
    assert torch.equal(exported["angles"], torch.linspace(0, 1, 12)), "buffers are not rounded"


@pytest.mark.parametrize("name", BAD)
def test_steps_that_are_not_finite_are_skipped_by_all_ranks(name, two_ranks, read_trace):
    losses, raw, average = plain_run(bad=(12, 13))
    lines = read_trace(two_ranks / name)
    assert [line["skipped"] for line in lines] == [0] * 12 + [1] + [2] * 7
    for step in (12, 13):
        assert lines[step]["loss"] is None and lines[step]["grad_norm"] is None
        lines[step]["loss"] = losses[step]
    check_run(two_ranks / name, lines, (losses, raw, average))


@pytest.mark.parametrize("name", [*ALIKE, *BFLOAT16])
def test_each_rank_keeps_only_its_own_part(name, two_ranks):
    """EMA, masters and moments are 1/N of the model on each of N ranks, and no teacher is among them."""
    spec = {**ALIKE, **BFLOAT16}[name]
    sizes = []
    for rank in range(2):
        tensors = load_file(two_ranks / name / "checkpoints" / "step_00000020" / f"rank_{rank:05d}.safetensors")
        kinds = {kind: 0 for kind in ("master", "exp_avg", "exp_avg_sq", "ema")}
        for key, tensor in tensors.items():
            if not key.startswith("rng/"):
                kinds[key.split("/")[0]] += tensor.numel()
        assert len(set(kinds.values())) == 1
        assert not any("teacher" in key for key in tensors)
        sizes.append(kinds["ema"])
    whole = sum(p.numel() for p in load_toy().Student().parameters() if p.requires_grad)
    assert sum(sizes) == whole
    if spec["stage"] == 0 and "dtype" not in spec:
        assert sizes == [whole, 0]  # replicated: written once
    else:
        assert max(sizes) <= whole / 2 + 32  # the last rank's end is padding


def test_the_deepspeed_launcher_and_a_run_ended_by_bad_steps(tmp_path, read_trace, free_port, environment):
    good, bad = tmp_path / "good", tmp_path / "bad"
    endless = {"run_dir": str(bad), "bad": [6 * 8 + 1, 7 * 8 + 7], "max_bad_steps": 2}
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", str(free_port)]
    command += [str(Path(__file__).with_name("toy.py")), json.dumps([{"run_dir": str(good), "steps": 3}, endless])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    output = done.stdout + done.stderr
    assert [line["step"] for line in read_trace(good)] == [1, 2, 3], output
    assert done.returncode != 0
    assert "NonFiniteError" in output and "bad_batch.json" in output
    report = json.loads((bad / "bad_batch.json").read_text())
    assert report["step"] == 8
    assert [batch["sample_id"] for batch in report["micro_batches"]] == [[56, 57, 58, 59], [60, 61, 62, 63]]
    assert report["micro_batches"][1]["loss"] == "inf" and isinstance(report["micro_batches"][0]["loss"], float)


def test_parameters_outside_the_student_are_refused():
    from di4c_lm.training.distributed import World
    from di4c_lm.training.engine import Engine
    from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    objective = torch.nn.Module()
    objective.student = torch.nn.Linear(2, 2)
    objective.teacher = torch.nn.Linear(2, 2).requires_grad_(False)
    sections = {"train": TrainConfig(), "optim": OptimConfig(), "zero": ZeroConfig(), "world": world}
    with pytest.raises(ValueError, match="outside its student.*teacher.weight"):
        Engine(objective, **sections)
    del objective.teacher
    objective.student.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to train"):
        Engine(objective, **sections)
