"""Our settings as a DeepSpeed configuration, and the user's own JSON laid over it."""

from pathlib import Path
from typing import Any

from di4c_lm.core.files import read_json
from di4c_lm.training.settings import OptimConfig, TrainConfig, ZeroConfig

_BUCKET = 50_000_000  # elements that travel at once
_OURS_ALONE = {
    "optimizer": "optim.*",
    "scheduler": "optim.schedule and optim.warmup_steps",
    "fp16": "train.dtype (float32 or bfloat16)",
    "amp": "train.dtype",
    "torch_autocast": "train.dtype",
}


def deepspeed_config(
    train: TrainConfig, optim: OptimConfig, zero: ZeroConfig, *, world_size: int, num_parameters: int, on_cpu: bool
) -> dict[str, Any]:
    """The configuration that DeepSpeed gets.

    Errors: `ValueError` naming the key, our value and theirs where the JSON of `zero.config` contradicts the run's settings.
    """
    bfloat16 = train.dtype == "bfloat16"
    # Without ZeRO DeepSpeed would add up bfloat16 gradients in bfloat16; stage 1 does the same sums in float32.
    stage = 1 if bfloat16 and zero.stage == 0 else zero.stage
    bucket = min(_BUCKET, num_parameters + num_parameters % 2)  # DeepSpeed insists on an even number
    offload = {"offload_optimizer": {"device": "cpu", "pin_memory": not on_cpu}} if zero.offload else {}
    settings: dict[str, Any] = {
        "train_batch_size": train.micro_batch_size * train.gradient_accumulation * world_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation,
        "gradient_clipping": optim.clip_norm,
        "bf16": {"enabled": bfloat16},
        "zero_optimization": {"stage": stage, **offload},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bfloat16:
        settings["bf16"]["check_grad_overflow"] = True  # a step with gradients that are not finite is skipped
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    tuning = {
        "steps_per_print": 1_000_000_000,
        "zero_optimization": {
            "overlap_comm": not on_cpu,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "stage3_prefetch_bucket_size": bucket,
        },
    }
    if zero.config is not None:
        theirs = _read(zero.config)
        _check(theirs, settings, path=zero.config)
        tuning = _merge(tuning, theirs)
    return _merge(tuning, settings)


def _read(path: str) -> dict[str, Any]:
    try:
        theirs = read_json(Path(path))
    except ValueError as error:
        raise ValueError(f"zero.config={path!r} cannot be read: {error}") from error
    for key, ours in _OURS_ALONE.items():
        section = theirs.get(key)
        if section is not None and not (isinstance(section, dict) and section.get("enabled") is False):
            raise ValueError(f"zero.config={path!r} sets {key!r}={section!r}: that is set by {ours}; take it out")
    return theirs


def _check(theirs: dict[str, Any], ours: dict[str, Any], *, path: str, prefix: str = "") -> None:
    for key, value in theirs.items():
        if key not in ours:
            continue
        name = prefix + key
        if isinstance(ours[key], dict) and isinstance(value, dict):
            _check(value, ours[key], path=path, prefix=f"{name}.")
        elif value not in (ours[key], "auto"):
            raise ValueError(
                f"zero.config={path!r} contradicts the run's settings: {name} is {value!r} there, {ours[key]!r} here"
            )


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    """`low` with the values of `high` laid over it, section by section."""
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
