"""Our own format: a folder of `model.safetensors` (the names of `DIT.state_dict()`) and `config.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from di4c_lm.checkpoints.files import WEIGHTS_FILE, read_safetensors
from di4c_lm.checkpoints.own import check_sizes, read_config, read_settings, write_own
from di4c_lm.checkpoints.weights import Loaded, Weights
from di4c_lm.networks.dit import DIT, DitConfig

ARCHITECTURE = "di4c_lm.DIT"


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
    write_own(Path(folder), ARCHITECTURE, weights, num_states=weights.num_states, length=weights.length)


def read(folder: Path | str) -> Weights:
    """The tensors as they are in the file, with their settings. Raises `ValueError` as `load_denoiser` does."""
    path = Path(folder)
    config = read_config(path, ARCHITECTURE, ("num_states", "length"))
    check_sizes(path, config, num_states=2, length=1)
    model, latent = read_settings(path, config, DitConfig)
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
