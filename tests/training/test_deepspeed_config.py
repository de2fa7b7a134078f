"""Our settings for DeepSpeed, and the user's own."""

import json

import pytest

from di4c_lm.training.deepspeed_config import deepspeed_config
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig


def build(tmp_path, theirs=None, **zero):
    path = None
    if theirs is not None:
        path = tmp_path / "theirs.json"
        path.write_text(theirs if isinstance(theirs, str) else json.dumps(theirs))
    return deepspeed_config(
        TrainConfig(micro_batch_size=4, gradient_accumulation=2, dtype=zero.pop("dtype", "float32")),
        OptimConfig(clip_norm=0.5),
        ZeroConfig(config=str(path) if path else None, **zero),
        world_size=3,
        num_parameters=1000,
        on_cpu=True,
    )


def test_ours(tmp_path):
    config = build(tmp_path, stage=2, offload=True)
    assert config["train_batch_size"] == 24 and config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert not config["bf16"]["enabled"]


@pytest.mark.parametrize("stage, expected", [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_bfloat16_adds_gradients_up_in_float32(tmp_path, stage, expected):
    config = build(tmp_path, stage=stage, dtype="bfloat16")
    assert config["bf16"]["enabled"] and config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["zero_optimization"]["stage"] == expected


def test_theirs_is_laid_over_our_tuning(tmp_path):
    theirs = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_clipping": 0.5,
        "fp16": {"enabled": False},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 77},
        "wall_clock_breakdown": True,
    }
    config = build(tmp_path, theirs, stage=1)
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["zero_optimization"]["reduce_bucket_size"] == 77
    assert config["zero_optimization"]["allgather_bucket_size"] == 1000
    assert config["wall_clock_breakdown"]


@pytest.mark.parametrize(
    "theirs, words",
    [
        ({"gradient_clipping": 1.0}, ["gradient_clipping", "1.0", "0.5"]),
        ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage", "3", "1"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled", "True", "False"]),
        ({"train_batch_size": 8}, ["train_batch_size", "8", "24"]),
        ({"optimizer": {"type": "Adam"}}, ["optimizer", "optim"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["scheduler", "optim.schedule"]),
        ({"fp16": {"enabled": True}}, ["fp16", "train.dtype"]),
        ("{", ["a JSON file"]),
        ([1], ["JSON object", "list"]),
    ],
)
def test_contradictions_are_named(tmp_path, theirs, words):
    with pytest.raises(ValueError) as error:
        build(tmp_path, theirs, stage=1)
    assert all(word in str(error.value) for word in [*words, "theirs.json"])


def test_an_absent_file(tmp_path):
    with pytest.raises(ValueError, match="absent.json.*cannot be read"):
        deepspeed_config(
            TrainConfig(),
            OptimConfig(),
            ZeroConfig(config=str(tmp_path / "absent.json")),
            world_size=1,
            num_parameters=1,
            on_cpu=True,
        )
