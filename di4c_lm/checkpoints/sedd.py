"""SEDD's hub folders, of absorbing noise (Lou et al. 2024): MDLM's names without a prefix, log concrete scores, a nested config.

Its trainer's own `.pth` files are read where they lie in the trainer's folder, whose `.hydra/config.yaml` says what they are.
"""

import dataclasses
from pathlib import Path
from typing import Any

from di4c_lm.checkpoints import published
from di4c_lm.checkpoints.files import CONFIG_FILE, read_weights_file, write_checkpoint
from di4c_lm.checkpoints.lightning import averages
from di4c_lm.checkpoints.pickles import read_pickle, state_in
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json

_HYDRA = Path(".hydra") / "config.yaml"


def recognises(path: Path) -> bool:
    """Whether a folder's `config.json`, or that of a file's trainer, is one of SEDD: a graph, a number of tokens and a model of blocks."""
    return published.has_graph(_config(path)) is True


def read(folder: Path, hints: Hints) -> Weights:
    """The network in a folder or file; its softmax is p(x_0 | x_t), whatever scale the scores have (see `DIT`).

    Raises `ValueError` for uniform noise, another schedule than the log-linear one, and as `assemble` and the readers of files do.
    """
    path, config = _place(folder), _config(folder)
    for part, key, expected in (("graph", "type", "absorb"), ("noise", "type", "loglinear")):
        if (found := (config.get(part) or {}).get(key)) != expected:
            raise ValueError(f"{path}: {part}.{key} must be {expected}, got {found!r}")
    says = published.stated_with_tokens(config, path)
    scaled = config["model"].get("scale_by_sigma", True)
    says |= {"time_conditioning": True, "output": "scaled_scores" if scaled else "scores"}
    content = read_pickle(folder) if folder.is_file() else {}
    bare = published.unwrap(state_in(content, folder) if content else read_weights_file(folder), folder)
    raw = published.assemble(bare, says, folder, hints, published.read_extra(config, "sedd"))
    if hints.weights == "raw" or content.get("ema") is None:
        return raw
    return dataclasses.replace(raw, tensors={**raw.tensors, **averages(content["ema"], bare, raw, folder)})


def _place(path: Path) -> Path:
    """Where the config of a folder is, or of a file of SEDD's trainer, which stands in a folder below its run's."""
    if path.is_dir():
        return path / CONFIG_FILE
    return next((one for above in path.parents[:2] if (one := above / _HYDRA).is_file()), path)


def _config(path: Path) -> dict[str, Any]:
    place = _place(path)
    if place.name == CONFIG_FILE:
        return read_json(place) if place.is_file() else {}
    import yaml

    found = yaml.safe_load(place.read_text(encoding="utf-8")) if place != path else None
    return found if isinstance(found, dict) else {}


def write(folder: Path, weights: Weights) -> None:
    """Write a folder in SEDD's layout, whole or not at all. Raises `ValueError` for what the format cannot say, logits of x_0 above all."""
    published.refuse_mixture(weights, "SEDD's format", published_allowed=False)
    published.refuse_others(weights, "SEDD's format", output=("scores", "scaled_scores"), time_conditioning=True)
    weights.check(f"saving to {folder}")
    model = {"name": "di4c_lm", "type": "ddit", "scale_by_sigma": weights.model.output == "scaled_scores"}
    fresh = {"graph": {"type": "absorb"}, "noise": {"type": "loglinear"}, "model": model}
    config = published.config_with_tokens(weights, published.original(weights, "sedd").get("config", fresh))
    write_checkpoint(folder, weights.tensors, published.with_extra(config, weights, "sedd"))
