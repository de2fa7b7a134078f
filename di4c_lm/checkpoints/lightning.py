"""Lightning `.ckpt` files of MDLM, SDTT and Di4C: `state_dict` under `backbone.`, and the EMA as a list in parameter order."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from di4c_lm.checkpoints.files import write_pickle
from di4c_lm.checkpoints.pickles import plain, read_pickle
from di4c_lm.checkpoints.published import (
    EXTRA_KEY,
    PREFIX,
    Stated,
    assemble,
    original,
    read_extra,
    refuse_mixture,
    stated_by_training_config,
    training_config,
    unwrap,
    with_extra,
)
from di4c_lm.checkpoints.weights import Hints, Weights


def recognises(path: Path) -> bool:
    """Whether this may be one: any file."""
    return path.is_file()


def read(path: Path, hints: Hints) -> Weights:
    """The network in a `.ckpt`, or in a file that is a bare state dict; `hints.weights` chooses where both are there.

    Raises `ValueError`: see `read_pickle` and `assemble`; also for an EMA list that does not fit the parameters.
    """
    content = read_pickle(path)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path}: expected 'state_dict' or a dict of tensors, found the keys {sorted(map(str, content))}"
        )
    bare = unwrap(state, path)
    config = _config(content)
    says = stated_by_training_config(config, path) if config else Stated()
    extra = read_extra({**config, **{k: v for k, v in content.items() if k == EXTRA_KEY}}, "lightning")
    raw = assemble(bare, says, path, hints, extra)
    if hints.weights == "raw" or content is state or content.get("ema") is None:
        return raw
    tensors = {**raw.tensors, **_averaged(content["ema"], bare, raw, path)}
    return dataclasses.replace(raw, tensors=tensors)


def write(path: Path, weights: Weights) -> None:
    """Write a `.ckpt` with `weights` as both raw and EMA weights, whole or not at all.

    Raises `ValueError` for a student whose λ the published network does not have.
    """
    refuse_mixture(weights, "a Lightning .ckpt", published_allowed=True)
    weights.check(f"saving to {path}")
    names = _parameter_names(weights)
    content = {
        "state_dict": {PREFIX + name: weights.tensors[name] for name in _state_names(weights)},
        "ema": {"decay": 0.9999, "num_updates": 0, "shadow_params": [weights.tensors[name] for name in names]},
        "hyper_parameters": {"config": training_config(weights, original(weights, "lightning").get("config", {}))},
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.2.1",
    }
    write_pickle(path, with_extra(content, weights, "lightning"))


def _config(content: Mapping[str, Any]) -> dict[str, Any]:
    """The training config among the hyper-parameters; empty where there is none."""
    parameters = plain(content.get("hyper_parameters"))
    config = parameters.get("config") if isinstance(parameters, dict) else None
    return config if isinstance(config, dict) else {}


def _averaged(ema: Any, bare: Mapping[str, Tensor], raw: Weights, path: Path) -> dict[str, Tensor]:
    """Give the shadow list its names: it follows the parameters of the published network, as does the state dict."""
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    if not isinstance(shadow, list) or not all(isinstance(tensor, Tensor) for tensor in shadow):
        raise ValueError(
            f"{path}: expected a list of tensors in ema['shadow_params']; weights=raw reads the raw weights"
        )
    names = _parameter_names(raw)
    if [name for name in bare if name in set(names)] != names:
        raise ValueError(
            f"{path}: the state dict is not in the published network's order, so the EMA list cannot be named; "
            "weights=raw reads the raw weights"
        )
    if len(shadow) != len(names):
        raise ValueError(
            f"{path}: ema['shadow_params'] holds {len(shadow)} tensors, the network {len(names)} parameters"
        )
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(raw.tensors[name].shape)}"
        for name, tensor in zip(names, shadow, strict=True)
        if tensor.shape != raw.tensors[name].shape
    ]
    if wrong:
        raise ValueError(f"{path}: ema['shadow_params'] does not fit the parameters:\n  " + "\n  ".join(wrong))
    return dict(zip(names, shadow, strict=True))


def _state_names(weights: Weights) -> list[str]:
    return list(weights.blank("").tensors())


def _parameter_names(weights: Weights) -> list[str]:
    return [name.removeprefix("network.") for name, _ in weights.blank("").named_parameters()]
