"""RADD's hub folders (Ou et al. 2025): MDLM's names without the noise level, norms with biases, a nested config like SEDD's."""

from pathlib import Path

from di4c_lm.checkpoints import published
from di4c_lm.checkpoints.files import CONFIG_FILE, read_weights_file, write_checkpoint
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json

_KIND = {"modulation": False, "norm_bias": True}


def recognises(path: Path) -> bool:
    """Whether a folder's `config.json` is a config of RADD: a number of tokens and a model of blocks, and no graph."""
    return (path / CONFIG_FILE).is_file() and published.has_graph(read_json(path / CONFIG_FILE)) is False


def read(folder: Path, hints: Hints) -> Weights:
    """The network in a folder; its conditional distributions are those of x_0 at any time.

    Raises `ValueError` as `assemble` and the readers of files do.
    """
    config = read_json(folder / CONFIG_FILE)
    says = {**published.stated_with_tokens(config, folder / CONFIG_FILE), **_KIND}
    bare = published.unwrap(read_weights_file(folder), folder)
    return published.assemble(bare, says, folder, hints, published.read_extra(config, "radd"))


def write(folder: Path, weights: Weights) -> None:
    """Write a folder in RADD's layout, whole or not at all. Raises `ValueError` for what the format cannot say."""
    published.refuse_mixture(weights, "RADD's format", published_allowed=False)
    published.refuse_others(weights, "RADD's format", **_KIND)
    weights.check(f"saving to {folder}")
    model = {"name": "di4c_lm", "type": "ddit_wot", "use_checkpoint": False, "dtype": "float32"}
    fresh = {"noise": {"type": "loglinear"}, "model": model}
    config = published.config_with_tokens(weights, published.original(weights, "radd").get("config", fresh))
    write_checkpoint(folder, weights.tensors, published.with_extra(config, weights, "radd"))
