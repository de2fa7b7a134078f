"""Duo's hub folders (Sahoo et al. 2025): MDLM's names, noise that makes tokens any others, and the noise level always an input.

Its Lightning files are read with those of MDLM; their config names the algorithm.
"""

from pathlib import Path

from di4c_lm.checkpoints import mdlm, published
from di4c_lm.checkpoints.files import CONFIG_FILE, read_weights_file, write_checkpoint
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json

_NAMES = {name: key for name, key in mdlm.NAMES.items() if name != "time_conditioning"}
_CODE = "s-sahoo/duo"  # where transformers finds Duo's own classes for a folder that we write


def recognises(path: Path) -> bool:
    """Whether a folder's `config.json` is Duo's."""
    config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
    return str(config.get("model_type")).lower() == "duo" and "n_blocks" in config


def read(folder: Path, hints: Hints) -> Weights:
    """The network in a folder; none of the code in it is imported.

    Raises `ValueError` for causal attention, which Duo's autoregressive baselines have, and as `assemble` and the readers of files do.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    if config.get("causal"):
        raise ValueError(
            f"{path}: causal must be false, got {config['causal']!r}: an autoregressive model is no teacher"
        )
    says = {**published.stated(config, _NAMES, path), "process": "uniform", "time_conditioning": True}
    bare = published.unwrap(read_weights_file(folder), folder)
    return published.assemble(bare, says, folder, hints, published.read_extra(config, "duo"))


def write(folder: Path, weights: Weights) -> None:
    """Write a folder that Duo's own classes load, whole or not at all. Raises `ValueError` for what the format cannot say."""
    published.refuse_mixture(weights, "Duo's format", published_allowed=False)
    published.refuse_others(weights, "Duo's format", process="uniform")
    weights.check(f"saving to {folder}")
    fresh = {
        "architectures": ["DUO"],
        "auto_map": {"AutoConfig": f"{_CODE}--config.DUOConfig", "AutoModelForMaskedLM": f"{_CODE}--model.DUO"},
        "model_type": "DUO",
        "causal": False,
        "return_dict": False,
        "var_min": False,
    }
    kept = published.original(weights, "duo").get("config", fresh)
    config = {**kept, **published.named_settings(weights, _NAMES)}
    tensors = {published.PREFIX + name: tensor for name, tensor in weights.tensors.items()}
    write_checkpoint(folder, tensors, published.with_extra(config, weights, "duo"))
