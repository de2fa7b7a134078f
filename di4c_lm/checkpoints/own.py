"""Our own format, for all domains: a folder of `model.safetensors` and a `config.json` that says which network and mixture it is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from di4c_lm.checkpoints.files import CONFIG_FILE, WEIGHTS_FILE, read_safetensors, write_checkpoint
from di4c_lm.checkpoints.weights import ARCHITECTURES, Architecture, Backbone, Hints, Weights
from di4c_lm.core.files import read_json
from di4c_lm.core.settings import build, to_dict
from di4c_lm.mixtures.base import Mixture, NoMixture
from di4c_lm.mixtures.registry import legacy_settings, plain_settings, read_settings
from di4c_lm.networks.base import Network

FORMAT_VERSION = 2
_FRAME = {"architecture", "format_version", "model", "mixture", "backbone", "extra"}
_RENAMED = ("latent_output.readout.", "latent_output.output_head.")  # since format 1
_FRAME_1 = {"architecture", "format_version", "model", "latent", "extra"}


def recognises(path: Path) -> bool:
    """Whether a folder is one of ours."""
    return (path / CONFIG_FILE).is_file() and "architecture" in read_json(path / CONFIG_FILE)


def read(folder: Path | str, hints: Hints | None = None) -> Weights:
    """The tensors as they are in the file, with their settings; also of a folder that an earlier version wrote.

    Raises `ValueError` that names the file, what was expected and what was found.
    """
    path = Path(folder) / CONFIG_FILE
    config = read_json(path)
    name, version = config.get("architecture"), config.get("format_version")
    if name not in ARCHITECTURES:
        raise ValueError(f"{path}: expected architecture={' or '.join(ARCHITECTURES)}, found {name!r}")
    if version not in (1, FORMAT_VERSION):
        raise ValueError(
            f"{path}: expected format_version={FORMAT_VERSION} or 1, found {version!r}; another di4c-lm wrote it"
        )
    known = (_FRAME if version == FORMAT_VERSION else _FRAME_1) | set(ARCHITECTURES[name].sizes)
    if set(config) != known:
        lacking, unknown = sorted(known - set(config)), sorted(set(config) - known)
        raise ValueError(f"{path}: missing keys {lacking}, unknown keys {unknown}")
    sizes = _sizes(path, config, ARCHITECTURES[name])
    try:
        model = build(ARCHITECTURES[name].model, config["model"])
        if version == 1:
            mixture, backbone = legacy_settings(config["latent"]), None
        else:
            mixture = NoMixture() if config["mixture"] is None else read_settings(config["mixture"])
            backbone = None if config["backbone"] is None else Backbone(**config["backbone"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the settings of the network are not ours: {error}") from error
    tensors = read_safetensors(Path(folder) / WEIGHTS_FILE)
    if version == 1:
        tensors = {name.replace(*_RENAMED): tensor for name, tensor in tensors.items()}
    weights = Weights(
        tensors=tensors,
        architecture=name,
        model=model,
        sizes=sizes,
        mixture=mixture,
        extra=config["extra"],
        backbone=backbone,
    )
    weights.check(Path(folder) / WEIGHTS_FILE)
    return weights


def save(folder: Path | str, denoiser: Network | Mixture, **options: Any) -> None:
    """`write` a network or a mixture; `options` and errors are those of `Weights.of` and `write`."""
    write(folder, Weights.of(denoiser, **options))


def write(folder: Path | str, weights: Weights) -> None:
    """Write the folder, whole or not at all.

    Raises:
        ValueError: missing, unknown or misshapen tensors; nothing is written.
        OSError: the disk is full or read-only; what stood in `folder` is as it was.
    """
    weights.check(f"saving to {folder}")
    config = {
        "architecture": weights.architecture,
        "format_version": FORMAT_VERSION,
        "model": to_dict(weights.model),
        "mixture": None if isinstance(weights.mixture, NoMixture) else plain_settings(weights.mixture),
        "backbone": None if weights.backbone is None else vars(weights.backbone),
        "extra": weights.extra,
        **weights.sizes,
    }
    write_checkpoint(Path(folder), weights.tensors, config)


def _sizes(path: Path, config: Mapping[str, Any], architecture: Architecture) -> dict[str, Any]:
    """The sizes that a `config.json` states. Raises `ValueError` for impossible ones."""
    sizes: dict[str, Any] = {}
    for key, least in architecture.sizes.items():
        value = config[key]
        if least is None:
            fits = isinstance(value, list) and len(value) == 3 and all(type(one) is int and one >= 1 for one in value)
            allowed = "three integers of at least 1: rows, columns, channels"
            value = tuple(value) if fits else value
        else:
            fits, allowed = type(value) is int and value >= least, f"an integer of at least {least}"
        if not fits:
            raise ValueError(f"{path}: {key} must be {allowed}, got {value!r}")
        sizes[key] = value
    return sizes
