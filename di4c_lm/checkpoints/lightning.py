"""Lightning `.ckpt` files of MDLM, SDTT, Di4C and Duo: `state_dict` under `backbone.`, and the EMA as a list in parameter order."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from di4c_lm.checkpoints import published
from di4c_lm.checkpoints.files import write_pickle
from di4c_lm.checkpoints.pickles import plain, read_pickle, state_in
from di4c_lm.checkpoints.weights import Hints, Weights, averaged
from di4c_lm.networks.base import check_tensors


def recognises(path: Path) -> bool:
    """Whether this may be one: any file."""
    return path.is_file()


def read(path: Path, hints: Hints) -> Weights:
    """The network in a `.ckpt`, or in a file that is a bare state dict; `hints.weights` chooses where both are there.

    Raises `ValueError`: see `read_pickle` and `assemble`; also for an EMA list that does not fit the parameters.
    """
    content = read_pickle(path)
    state = state_in(content, path)
    bare = published.unwrap(state, path)
    parameters = plain(content.get("hyper_parameters"))
    config = parameters.get("config") if isinstance(parameters, dict) else None
    config = config if isinstance(config, dict) else {}
    says = published.stated_by_training_config(config, path) if config else {}
    kept = {key: value for key, value in content.items() if key == published.EXTRA_KEY}
    raw = published.assemble(bare, says, path, hints, published.read_extra({**config, **kept}, "lightning"))
    if hints.weights == "raw" or content is state or content.get("ema") is None:
        return raw
    return dataclasses.replace(raw, tensors={**raw.tensors, **averages(content["ema"], bare, raw, path)})


def write(path: Path, weights: Weights) -> None:
    """Write a `.ckpt` with `weights` as both raw and EMA weights, whole or not at all.

    Raises `ValueError` for a student whose λ the published network does not have.
    """
    published.refuse_mixture(weights, "a Lightning .ckpt", published_allowed=True)
    published.refuse_others(weights, "a Lightning .ckpt", process=("masked", "uniform"))
    weights.check(f"saving to {path}")
    names = _parameter_names(weights)
    content = {
        "state_dict": {published.PREFIX + name: weights.tensors[name] for name in weights.blank("").tensors()},
        "ema": {"decay": 0.9999, "num_updates": 0, "shadow_params": [weights.tensors[name] for name in names]},
        "hyper_parameters": {
            "config": published.training_config(weights, published.original(weights, "lightning").get("config", {}))
        },
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": "2.2.1",
    }
    write_pickle(path, published.with_extra(content, weights, "lightning"))


def averages(ema: Any, bare: Mapping[str, Tensor], raw: Weights, path: Path) -> dict[str, Tensor]:
    """Give the shadow list its names: it follows the parameters of the published network, as does the state dict."""
    if isinstance(ema, dict) and ema and all(isinstance(value, Tensor) for value in ema.values()):  # by name
        named = published.unwrap(ema, path)
        wanted = {*_parameter_names(raw), *named}
        check_tensors(named, {name: t for name, t in raw.tensors.items() if name in wanted}, f"{path}: ema")
        return named
    hint, names = "weights=raw reads the raw weights", _parameter_names(raw)
    if [name for name in bare if name in set(names)] != names:
        raise ValueError(
            f"{path}: the state dict is not in the published network's order, so the EMA list cannot be named; {hint}"
        )
    shadow = ema.get("shadow_params") if isinstance(ema, dict) else None
    parameters = {name: raw.tensors[name] for name in names}
    return averaged(shadow, parameters, f"{path}: expected ema['shadow_params'] ({hint})")


def _parameter_names(weights: Weights) -> list[str]:
    return [name.removeprefix("network.") for name, _ in weights.blank("").named_parameters()]
