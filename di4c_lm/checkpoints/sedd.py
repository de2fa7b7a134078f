"""SEDD's hub folders, of absorbing noise (Lou et al. 2024): MDLM's names without a prefix, log concrete scores, a nested config."""

from pathlib import Path

from di4c_lm.checkpoints import published
from di4c_lm.checkpoints.files import CONFIG_FILE, read_weights_file, write_checkpoint
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json


def recognises(path: Path) -> bool:
    """Whether a folder's `config.json` is a config of SEDD: a graph, a number of tokens and a model of blocks."""
    return published.has_graph(path / CONFIG_FILE) is True


def read(folder: Path, hints: Hints) -> Weights:
    """The network in a folder; its softmax is p(x_0 | x_t), whatever scale the scores have (see `DIT`).

    Raises `ValueError` for uniform noise, another schedule than the log-linear one, and as `assemble` and the readers of files do.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    for part, key, expected in (("graph", "type", "absorb"), ("noise", "type", "loglinear")):
        if (found := (config.get(part) or {}).get(key)) != expected:
            raise ValueError(f"{path}: {part}.{key} must be {expected}, got {found!r}")
    says = published.stated_with_tokens(config, path)
    scaled = config["model"].get("scale_by_sigma", True)
    says |= {"time_conditioning": True, "output": "scaled_scores" if scaled else "scores"}
    bare = published.unwrap(read_weights_file(folder), folder)
    return published.assemble(bare, says, folder, hints, published.read_extra(config, "sedd"))


def write(folder: Path, weights: Weights) -> None:
    """Write a folder in SEDD's layout, whole or not at all. Raises `ValueError` for what the format cannot say, logits of x_0 above all."""
    published.refuse_mixture(weights, "SEDD's format", published_allowed=False)
    published.refuse_others(weights, "SEDD's format", output=("scores", "scaled_scores"), time_conditioning=True)
    weights.check(f"saving to {folder}")
    model = {"name": "di4c_lm", "type": "ddit", "scale_by_sigma": weights.model.output == "scaled_scores"}
    fresh = {"graph": {"type": "absorb"}, "noise": {"type": "loglinear"}, "model": model}
    config = published.config_with_tokens(weights, published.original(weights, "sedd").get("config", fresh))
    write_checkpoint(folder, weights.tensors, published.with_extra(config, weights, "sedd"))
