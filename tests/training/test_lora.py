"""Adapters under ZeRO 0 to 3: the same training on two ranks as on one, resumed where it was killed, the rest of the network untouched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("peft")

SPEC = {"real": True, "path": "adaln", "lora": ["attn_qkv", "mlp.2"], "steps": 6, "save_every": 2}
STAGES = {
    "stage 0": {"stage": 0},
    "stage 1": {"stage": 1},
    "stage 2, accumulating": {"stage": 2, "accumulation": 2},
    "stage 3": {"stage": 3, "checkpointing": True},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, run_toy: Callable[..., Any]) -> Path:
    """`one`: on one rank; the others on two, killed in the middle and resumed."""
    folder = tmp_path_factory.mktemp("lora")
    run_toy([{**SPEC, "run_dir": str(folder / "one")}]).check()
    specs = [{**SPEC, **spec, "run_dir": str(folder / name)} for name, spec in STAGES.items()]
    killed = run_toy([*specs[:3], {**specs[3], "kill_at": 4}], ranks=2)
    assert killed.codes != [0, 0]
    run_toy(specs[3:], ranks=2).check()
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_two_ranks_train_the_adapters_as_one_does(name: str, runs: Path, read_trace: Callable[[Path], Any]) -> None:
    expected, found = (read_trace(runs / one) for one in ("one", name))
    assert [line["step"] for line in found] == list(range(1, 7))
    losses = [[line["loss"] for line in lines] for lines in (found, expected)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for which in ("raw", "ema"):
        one, two = (load_file(runs / folder / f"{which}.safetensors") for folder in ("one", name))
        assert one.keys() == two.keys()
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)


def test_only_adapters_and_the_mixture_learn(runs: Path) -> None:
    averaged, raw = (load_file(runs / "one" / f"{which}.safetensors") for which in ("ema", "raw"))
    moved = {name for name in raw if not torch.equal(raw[name], averaged[name])}
    assert moved and all(".lora_" in name or not name.startswith("network.") for name in moved)
    of_time = 1  # sigma_map.mlp.2, whose name ends so too
    assert sum(".lora_A" in name for name in moved) == 6 + of_time == sum(".lora_B" in name for name in moved)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_checkpoint_holds_what_is_trained_and_no_more(runs: Path, stage: int) -> None:
    folder = runs / f"stage {stage}"
    kept = max((path.stat().st_size for path in (folder / "checkpoints").rglob("*.safetensors")), default=0)
    trained = sum(
        t.numel()
        for name, t in load_file(folder / "raw.safetensors").items()
        if "lora_" in name or "network." not in name
    )
    assert 0 < kept < 4 * 4 * trained + 20_000  # masters, two moments and the average, in float32
