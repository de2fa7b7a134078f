"""VQGANs: Taming's Lightning checkpoint (`last.ckpt`) with its YAML, and our own folders."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from di4c_lm.checkpoints.files import CONFIG_FILE, WEIGHTS_FILE, read_safetensors, write_checkpoint
from di4c_lm.checkpoints.pickles import read_pickle, state_in
from di4c_lm.core.files import read_json
from di4c_lm.core.settings import build
from di4c_lm.networks.base import check_tensors
from di4c_lm.networks.vqgan import VqGan, VqganConfig

ARCHITECTURE = "di4c_lm.VqGan"
FORMAT_VERSION = 1
CHECKPOINT, YAML = "last.ckpt", "model.yaml"
_TRAINING = "loss."  # the discriminator and the perceptual network
_KEYS = {"architecture", "format_version", "model", "extra"}
# What Taming's settings may say beside, and the only values that they are built with here.
_FIXED: dict[str, Any] = {"double_z": False, "resamp_with_conv": True, "give_pre_end": False}


def load_vqgan(source: Path | str, config: Path | str | None = None) -> VqGan:
    """The VQGAN in a `.ckpt` file with the YAML `config` (absent: the one beside it), in a folder of the two, or in one of ours.

    In evaluation mode, on the CPU, frozen, in float32. Weights under `loss.`, of the discriminator and the perceptual network, are left
    out; all others must fit. Raises `ValueError` that names the file, what was expected and what was found; nothing loads half.
    """
    path = Path(source).expanduser()
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        settings, tensors, shown = _read_folder(path)
    else:
        shown = path / CHECKPOINT if path.is_dir() else path
        state = state_in(read_pickle(shown), shown)
        tensors = {name: tensor for name, tensor in state.items() if not name.startswith(_TRAINING)}
        settings = read_yaml(Path(config).expanduser() if config is not None else _yaml_beside(shown))
    with torch.device("meta"):
        network = VqGan(settings)
    check_tensors(tensors, network.state_dict(), shown)
    network.load_state_dict({k: v.to(torch.float32, copy=True) for k, v in tensors.items()}, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def read_yaml(path: Path) -> VqganConfig:
    """The settings in Taming's YAML, `model.params`. Raises `ValueError` for one that is absent, or says what is not built here."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        params = content["model"]["params"]
        said = {"n_embed": params["n_embed"], "embed_dim": params["embed_dim"], **params["ddconfig"]}
    except OSError as error:
        raise ValueError(f"{path}: expected the YAML of a VQGAN, could not read it: {error.strerror}") from error
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: expected the YAML of a VQGAN with model.params.n_embed, embed_dim and ddconfig: {error}"
        ) from error
    for key, value in _FIXED.items():
        if (found := said.pop(key, value)) != value:
            raise ValueError(f"{path}: model.params.ddconfig.{key} must be {value}, got {found!r}")
    try:
        return build(VqganConfig, said)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: model.params are not those of a VQGAN: {error}") from error


def save_vqgan(folder: Path | str, network: VqGan, *, extra: dict[str, Any] | None = None) -> None:
    """Write `model.safetensors` and `config.json`, whole or not at all, so that `load_vqgan` gives the network back."""
    config = {
        "architecture": ARCHITECTURE,
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(network.config),
        "extra": extra or {},
    }
    write_checkpoint(Path(folder), network.state_dict(), config)


def _yaml_beside(path: Path) -> Path:
    if (path.parent / YAML).is_file():
        return path.parent / YAML
    found = sorted(path.parent.glob("*.yaml"))
    if len(found) != 1:
        names = ", ".join(one.name for one in found) or "none"
        raise ValueError(f"{path.parent}: expected {YAML} or one other YAML beside {path.name}, found {names}")
    return found[0]


def _read_folder(folder: Path) -> tuple[VqganConfig, Mapping[str, Tensor], Path]:
    path = folder / CONFIG_FILE
    config = read_json(path)
    if config.get("architecture") != ARCHITECTURE or config.get("format_version") != FORMAT_VERSION:
        found = f"architecture={config.get('architecture')!r}, format_version={config.get('format_version')!r}"
        raise ValueError(
            f"{path}: expected architecture={ARCHITECTURE!r}, format_version={FORMAT_VERSION}, found {found}"
        )
    if set(config) != _KEYS:
        raise ValueError(f"{path}: expected the keys {sorted(_KEYS)}, found {sorted(config)}")
    try:
        settings = build(VqganConfig, config["model"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the settings of the network are not ours: {error}") from error
    return settings, read_safetensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE
