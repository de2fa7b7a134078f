"""tauLDR's and Di4C's `.pt` files: `{"model": ...}` with the U-Net under `net.` and its EMA as a list in the order of its parameters."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from di4c_lm.checkpoints.files import write_pickle
from di4c_lm.checkpoints.pickles import read_pickle
from di4c_lm.checkpoints.weights import Hints, Weights, averaged
from di4c_lm.mixtures.base import NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.unet import UnetConfig

_PREFIX = "net."
_EMA = "ema_shadow_params"


def recognises(path: Path) -> bool:
    """Whether this may be one: any file."""
    return path.is_file()


def read(path: Path, hints: Hints) -> Weights:
    """The network in a `.pt`; its architecture is read off its tensors, the shape and the levels of the images are those of `hints`.

    `hints.weights` chooses between the raw weights and their average where both are there. Raises `ValueError` as `read_pickle` does, and
    for a file that holds no such U-Net, with what was expected and found.
    """
    content = read_pickle(path)
    state = content.get("model", content)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected 'model' to be a dict, found {type(state).__name__}")
    return of_state(state, path, hints)


def of_state(state: Mapping[str, Any], path: Path | str, hints: Hints) -> Weights:
    """As `read`, from the dict under 'model'; `path` names its source in errors."""
    named = {str(name): value for name, value in state.items() if not str(name).startswith("ema_")}
    strange = sorted(name for name, value in named.items() if not isinstance(value, Tensor))
    if not named or strange or not all(name.startswith(_PREFIX) for name in named):
        found = strange or sorted(name for name in named if not name.startswith(_PREFIX))
        raise ValueError(f"{path}: expected tensors named {_PREFIX}*, as tauLDR names its U-Net's, found {found[:8]}")
    raw = {name.removeprefix(_PREFIX): value for name, value in named.items()}
    mixed = "tlam_mix.weight" in raw
    whole = Weights(
        tensors=raw,
        architecture="di4c_lm.UNet",
        model=_architecture(raw, path),
        sizes={"shape": hints.shape, "num_states": hints.num_states},
        mixture=TokenSettings() if mixed else NoMixture(),
    )
    whole.check(path)
    if hints.weights == "raw" or state.get(_EMA) is None:
        return whole
    return dataclasses.replace(whole, tensors=averaged(state[_EMA], raw, f"{path}: expected {_EMA}"))


def write(path: Path | str, weights: Weights, *, raw: Mapping[str, Tensor] | None = None) -> None:
    """Write a `.pt` whole or not at all, with `weights` as the average, and as the raw weights unless `raw` are given.

    Raises `ValueError` for a student whose λ the published network does not have.
    """
    path = Path(path)
    mixture = weights.mixture
    if (
        isinstance(mixture, TokenSettings)
        and mixture.distribution == "codebook"
        or type(mixture) not in (NoMixture, TokenSettings)
    ):
        raise ValueError(f"a tauLDR file must have mixture=token, distribution=uniform or stratified, got {mixture}")
    weights.check(f"saving to {path}")
    plain = weights.tensors if raw is None else dict(raw)
    dataclasses.replace(weights, tensors=plain).check(f"saving to {path}")
    content: dict[str, Any] = {_PREFIX + name: plain[name].detach().cpu().clone() for name in weights.tensors}
    content["ema_decay"], content["ema_num_updates"] = 0.9999, 0
    content[_EMA] = [tensor.detach().cpu().clone() for tensor in weights.tensors.values()]
    write_pickle(path, {"model": content})


def _architecture(tensors: Mapping[str, Tensor], path: Path | str) -> UnetConfig:
    """The settings of the network, read off its down path; whether all else fits is checked name by name afterwards."""
    if "input_conv.weight" not in tensors:
        raise ValueError(f"{path}: expected a U-Net of tauLDR, found no {_PREFIX}input_conv.weight")
    width = len(tensors["input_conv.weight"])
    modules = (re.fullmatch(r"downsampling_modules\.(\d+)\.(conv0|GroupNorm_0|conv)\.weight", name) for name in tensors)
    names = {"conv0": "block", "GroupNorm_0": "attention", "conv": "down"}
    kinds = sorted((int(found[1]), names[found[2]]) for found in modules if found)
    channels = [len(tensors[f"downsampling_modules.{index}.conv0.weight"]) for index, kind in kinds if kind == "block"]
    scales = sum(kind == "down" for _, kind in kinds) + 1
    attended = {
        sum(kind == "down" for _, kind in kinds[:place]) for place, (_, kind) in enumerate(kinds) if kind == "attention"
    }
    blocks = len(channels) // scales
    if not blocks or len(channels) != blocks * scales or len(attended) > 1 or any(c % width for c in channels):
        raise ValueError(
            f"{path}: expected a U-Net of tauLDR, each scale of as many blocks, with attention in at most one, found a down path of "
            f"{[kind for _, kind in kinds]} with {channels} channels"
        )
    return UnetConfig(
        width=width,
        multipliers=tuple(c // width for c in channels[blocks - 1 :: blocks]),
        res_blocks=blocks,
        attention_scale=attended.pop() if attended else -1,
    )
