"""Our own format: a folder of `model.safetensors` (the names of `DIT.state_dict()`) and `config.json`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from di4c_lm.checkpoints.files import CONFIG_FILE, WEIGHTS_FILE, read_json, read_safetensors, write_checkpoint
from di4c_lm.checkpoints.weights import Loaded, Weights
from di4c_lm.config import LatentConfig, ModelConfig
from di4c_lm.models.dit import DIT

ARCHITECTURE = "di4c_lm.DIT"
FORMAT_VERSION = 1
_KEYS = {"architecture", "format_version", "model", "latent", "num_states", "length", "extra"}


def save_denoiser(
    folder: Path | str,
    network: DIT,
    *,
    length: int,
    extra: dict[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `network` so that `load_denoiser` gives it back bit by bit, in the dtypes it has.

    `state` holds the parameters by name where those of `network` are not whole (ZeRO-3) or not the ones meant (EMA); buffers
    that it lacks are taken from `network`. `extra` is any JSON, such as the tokenizer's fingerprint.

    Raises:
        ValueError: `state` has missing, unknown or misshapen tensors; nothing is written.
        OSError: the disk is full or read-only; what stood in `folder` is as it was.
    """
    tensors = network.state_dict() if state is None else {**dict(network.named_buffers()), **state}
    weights = Weights(
        tensors=tensors,
        model=network.config,
        latent=network.latent,
        num_states=network.num_states,
        length=length,
        extra=extra or {},
    )
    write(folder, weights)


def load_denoiser(folder: Path | str) -> Loaded:
    """The network that `save_denoiser` wrote: in evaluation mode, on the CPU, float32 (float64 where it was).

    Raises `ValueError` that names the file, what was expected and what was found; nothing loads half.
    """
    return read(folder).build(folder)


def write(folder: Path | str, weights: Weights) -> None:
    """Write the folder, whole or not at all. Raises as `save_denoiser` does."""
    weights.check(f"saving to {folder}")
    config = {
        "architecture": ARCHITECTURE,
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(weights.model),
        "latent": None if weights.latent is None else dataclasses.asdict(weights.latent),
        "num_states": weights.num_states,
        "length": weights.length,
        "extra": weights.extra,
    }
    write_checkpoint(Path(folder), weights.tensors, config)


def read(folder: Path | str) -> Weights:
    """The tensors as they are in the file, with their settings. Raises `ValueError` as `load_denoiser` does."""
    path = Path(folder) / CONFIG_FILE
    config = read_json(path)
    if config.get("architecture") != ARCHITECTURE:
        raise ValueError(f"{path}: expected architecture={ARCHITECTURE!r}, found {config.get('architecture')!r}")
    if config.get("format_version") != FORMAT_VERSION:
        found = config.get("format_version")
        raise ValueError(f"{path}: expected format_version={FORMAT_VERSION}, found {found!r}; another di4c-lm wrote it")
    if set(config) != _KEYS:
        lacking, unknown = sorted(_KEYS - set(config)), sorted(set(config) - _KEYS)
        raise ValueError(f"{path}: missing keys {lacking}, unknown keys {unknown}")
    for key, low in (("num_states", 2), ("length", 1)):
        if type(config[key]) is not int or config[key] < low:
            raise ValueError(f"{path}: {key}={config[key]!r} is impossible: allowed is an integer of at least {low}")
    try:
        model = ModelConfig(**config["model"])
        latent = None if config["latent"] is None else LatentConfig(**config["latent"])
    except (ValidationError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the settings of the network are not ours: {error}") from error
    weights = Weights(
        tensors=read_safetensors(Path(folder) / WEIGHTS_FILE),
        model=model,
        latent=latent,
        num_states=config["num_states"],
        length=config["length"],
        extra=config["extra"],
    )
    weights.check(Path(folder) / WEIGHTS_FILE)
    return weights
