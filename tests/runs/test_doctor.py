"""The doctor: what it counts, what it refuses, and its exit status."""

import json
import re
from typing import Any

import pytest
import torch

from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.networks.base import attention_blocks
from di4c_lm.networks.decoder import Decoder, DecoderConfig
from di4c_lm.networks.dit import DIT
from di4c_lm.runs.doctor import doctor, machine, plan
from di4c_lm.runs.recipe import mixture_of
from tests.tools.helpers import run_tool

SMALL = ["model.hidden_size=32", "model.num_heads=2", "model.cond_dim=8", "data.length=16", "data.vocab_size=300"]


def config(*words: str) -> TextSettings:
    given = any(word.startswith("teacher=") for word in words)  # whose shape nobody says then
    small = [word for word in SMALL if not (given and word.startswith("model."))]
    return compose(TextSettings, [*small, *words], CONFIGS, "text")


def memory(*words: str, ranks: int = 4) -> dict[str, dict[str, float]]:
    chosen = config(*words)
    counts = plan.count(chosen, chosen.model, 301)
    return {way: plan.state_memory(chosen, counts, ranks, way) for way in plan.WAYS}


def test_parameters_are_those_of_the_networks() -> None:
    chosen = config("recipe=di4c_paper", "mixture=adaln", "mixture.inject_at=1")
    counts = plan.count(chosen, chosen.model, 301)
    teacher = DIT(chosen.model, num_states=301)
    student = AdaLNSettings(inject_at=1).fresh(DIT, chosen.model, {"num_states": 301})
    assert counts["teacher"] == sum(p.numel() for p in teacher.parameters())
    assert counts["student"] == counts["trained"] == sum(p.numel() for p in student.parameters())
    assert counts["latent"] == counts["student"] - counts["teacher"] > 0
    assert plan.count(config("objective=mdlm"), chosen.model, 301)["teacher"] == 0


def test_a_frozen_trunk_is_held_and_not_optimised() -> None:
    chosen = config("mixture.codebook_size=8")
    counts = plan.count(chosen, chosen.model, 301)
    assert counts["trained"] == counts["latent"] < counts["student"]
    one, shared = (plan.state_memory(chosen, counts, 4, way) for way in ("0", "3"))
    assert (one["weights"] + one["teacher"], one["optimizer"]) == (4 * counts["student"], 8 * counts["trained"])
    assert shared["weights"] == counts["trained"]


def test_a_partitioned_teacher_is_held_in_parts_but_for_what_is_outside_its_blocks(tmp_path) -> None:
    given = ("recipe=copula", f"teacher={tmp_path}")
    whole, parts = (config(*given, f"zero.teacher={way}") for way in ("replicated", "partitioned"))
    counts = plan.count(whole, whole.model, 301)
    blocks = sum(p.numel() for block in attention_blocks(DIT(whole.model, num_states=301)) for p in block.parameters())
    held = [plan.state_memory(chosen, counts, 4, "3")["teacher"] for chosen in (whole, parts)]
    assert held == [4 * counts["teacher"], 4 * (counts["teacher"] - blocks * 3 / 4)]


def test_adapters_are_optimised_and_what_they_change_is_held() -> None:
    chosen = config("objective=sdtt", "lora.rank=4", "lora.targets=[attn_qkv]")
    counts, whole = (plan.count(one, chosen.model, 301) for one in (chosen, config("objective=sdtt")))
    assert counts["trained"] == 4 * chosen.model.num_blocks * (32 + 3 * 32)
    assert counts["frozen"] == counts["student"] == whole["trained"]
    one, shared = (plan.state_memory(chosen, counts, 4, way) for way in ("0", "3"))
    assert one["weights"] == 4 * (counts["trained"] + counts["frozen"]) == 4 * shared["weights"]
    assert one["optimizer"] == 8 * counts["trained"]


def test_state_by_stage_in_float32() -> None:
    """16 bytes a parameter and the EMA's 4 at stage 0; the shares of stages 1 to 3 after Rajbhandari et al. 2020."""
    found = memory("recipe=di4c")
    trained = plan.count(config("recipe=di4c"), config().model, 301)["trained"]
    sums = {way: sum(found[way][part] for part in ("weights", "gradients", "optimizer", "ema")) for way in plan.WAYS}
    assert sums["0"] == 20 * trained
    assert sums["1"] == (8 + 16 / 4) * trained
    assert sums["2"] == (4 + 20 / 4) * trained
    assert sums["3"] == 24 / 4 * trained
    assert found["0"]["on_host"] == found["3"]["on_host"] == 0
    assert found["2+offload"]["on_host"] == 16 / 4 * trained


def test_bfloat16_halves_what_is_computed_with_and_nothing_else() -> None:
    wide, narrow = (memory("recipe=di4c", f"train.dtype={dtype}") for dtype in ("float32", "bfloat16"))
    for way in ("1", "2", "3"):
        assert narrow[way]["weights"] == wide[way]["weights"] / 2
        assert narrow[way]["teacher"] == wide[way]["teacher"] / 2
        assert narrow[way]["optimizer"] == wide[way]["optimizer"] and narrow[way]["ema"] == wide[way]["ema"]
    assert narrow["0"] == narrow["1"]


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("path", ["adaln", "codes"])
def test_the_estimate_of_activations_is_near_what_autograd_keeps(checkpointing: str, path: str) -> None:
    """Within a factor of 1.5, for a network that dwarfs the rest."""
    words = (
        "recipe=di4c",
        f"mixture={path}",
        *(["mixture.distribution=codebook", "mixture.inject_at=1"] if path == "adaln" else []),
        "mixture.codebook_size=0",
        "objective.num_lambdas=3",
    )
    chosen = config(f"train.activation_checkpointing={checkpointing}", *words)
    mixture = mixture_of(chosen)
    network = mixture.fresh(DIT, chosen.model, {"num_states": 301})
    network.activation_checkpointing = checkpointing == "true"
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(chosen.train.micro_batch_size, chosen.data.length, dtype=torch.long)
    lam = network.training_latents(len(x), 3, torch.Generator().manual_seed(0), torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = network(x, torch.full((len(x),), 0.5), lam)
    estimate = plan.activation_memory(chosen, chosen.model, 301, on_gpu=False)["network"]
    if checkpointing == "true":  # and one block whole, in the backward pass
        rows = 3 if path == "adaln" else 2
        estimate -= 4 * len(x) * chosen.data.length * rows * 18 * chosen.model.hidden_size
    assert prediction.features.requires_grad and 1 / 1.5 < estimate / sum(kept.values()) < 1.5


def test_the_loss_is_counted_by_its_chunks() -> None:
    chosen = config("recipe=di4c", "objective.chunk_rows=7", "objective.num_lambdas=4", "train.micro_batch_size=2")
    found = plan.activation_memory(chosen, chosen.model, 1000, on_gpu=False)
    assert found["logits"] == 4 * 3 * 7 * 1000
    assert found["distributions"] == 4 * 2 * 2 * 16 * 1000
    assert (
        plan.tokens_per_step(config("train.micro_batch_size=2", "train.gradient_accumulation=3"), 4) == 2 * 3 * 4 * 16
    )


def a_machine(**changes: Any) -> dict[str, Any]:
    return {"disk": {"run": 100.0, "cache": 100.0}, "memory": 16.0, "gpus": [], **changes}


@pytest.mark.parametrize(
    ("changes", "on_gpu", "said"),
    [
        ({}, False, None),
        ({"disk": {"run": 1e-6, "cache": 1.0}}, False, "disk of the run's folder has 0.00 GiB free"),
        ({"memory": 1e-4}, False, r"2 rank\(s\) take .* GiB of this machine's memory, of which 0.00 is free"),
        ({"gpus": [{"memory": 1e-4}]}, True, "of its GPU, which has 0.00"),
    ],
)
def test_a_run_that_does_not_fit_is_told_why(changes, on_gpu, said) -> None:
    planned = doctor.plan(config(), doctor.shape_of(config()), 2, on_gpu=on_gpu)
    found = doctor.reasons_against(a_machine(**changes), planned, on_gpu=on_gpu)
    assert not found if said is None else re.search(said, found[0])


def test_the_hub_is_asked_and_not_for_long(monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "127.0.0.1:9" in (machine.hub_problem() or "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in (machine.hub_problem() or "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.depth=3"], "model.depth"),
        (["ranks=0"], "ranks must be at least 1, got 0"),
        (["trial_steps=few"], "trial_steps must be a whole number, got 'few'"),
    ],
)
def test_bad_settings_end_with_status_2(words, said, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main(words)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_as_a_user_runs_it_with_a_trial(tmp_path) -> None:
    words = [*SMALL, "train.micro_batch_size=2", f"run.dir={tmp_path}", "--json"]
    done = run_tool("doctor", *words, "trial_steps=1", "ranks=2")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["plan"]["tokens_per_step"] == 2 * 2 * 16 and report["plan"]["ranks"] == 2
    assert report["trial"]["seconds_per_1000_steps"] == 1000 * report["trial"]["seconds_per_step"] > 0
    assert report["machine"]["deepspeed"] and "cpu_adam" in report["machine"]["deepspeed_ops"]
    assert not list(tmp_path.iterdir()), "the run's folder is left alone"


def test_an_absent_teacher_is_a_reason_and_status_1(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "describe_machine", lambda run, cache: a_machine())
    assert doctor.main([f"teacher={tmp_path / 'absent'}", "trial_steps=0", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert "absent" in report["reasons"][0]


def test_the_memory_of_a_decoder_is_that_of_its_saved_tensors() -> None:
    """Shapes of a decoder in the large: an MLP of its own width, fewer heads of keys."""
    chosen = config("objective=mdlm", "train.micro_batch_size=3")
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_blocks": 3,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "mlp_size": 192,
    }
    model = DecoderConfig(**sizes)
    network = Decoder(model, num_states=301)
    own, kept = {p.untyped_storage().data_ptr() for p in network.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(3, chosen.data.length, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x, torch.full((3,), 0.5))
    estimate = plan.activation_memory(chosen, model, 301, on_gpu=False)["network"]
    assert 1 / 1.3 < estimate / sum(kept.values()) < 1.3
    counts = plan.count(chosen, model, 301)
    assert counts["student"] == counts["trained"] == sum(p.numel() for p in network.parameters())
