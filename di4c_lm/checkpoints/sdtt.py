"""SDTT's hub folders: `model.safetensors` of the training module, and its training config as `config.json`. One revision a model."""

from pathlib import Path

from di4c_lm.checkpoints import published
from di4c_lm.checkpoints.files import CONFIG_FILE, read_weights_file, write_checkpoint
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json


def recognises(path: Path) -> bool:
    """Whether a folder's `config.json` is a training config of SDTT or of Di4C's fork of it."""
    config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
    model = config.get("model")
    return isinstance(model, dict) and "n_blocks" in model and "tokens" not in config  # which SEDD's and RADD's have


def read(folder: Path, hints: Hints) -> Weights:
    """The network in a folder. Distilled from MDLM's hub model its names begin with `backbone.backbone.`, else with `backbone.`.

    Raises `ValueError` as `assemble` and the readers of files do.
    """
    config = read_json(folder / CONFIG_FILE)
    says = published.stated_by_training_config(config, folder / CONFIG_FILE)
    tensors = read_weights_file(folder)
    twice = any(name.startswith(published.PREFIX * 2) for name in tensors)
    extra = published.read_extra(config, "sdtt", prefix=published.PREFIX * 2 if twice else published.PREFIX)
    return published.assemble(published.unwrap(tensors, folder), says, folder, hints, extra)


def write(folder: Path, weights: Weights) -> None:
    """Write a folder in SDTT's layout, whole or not at all; what was read from one gets its own config and names back.

    A config of ours describes the network and the tokenizer, and leaves SDTT's training settings to SDTT.
    Raises `ValueError` for a student whose λ is not as published.
    """
    published.refuse_mixture(weights, "SDTT's format", published_allowed=True)
    published.refuse_others(weights, "SDTT's format")
    weights.check(f"saving to {folder}")
    kept = published.original(weights, "sdtt")
    config = published.training_config(weights, kept.get("config", {"tokenizer": {"name": "gpt2"}}))
    prefix = kept.get("prefix", published.PREFIX)
    tensors = {prefix + name: tensor for name, tensor in weights.tensors.items()}
    write_checkpoint(folder, tensors, published.with_extra(config, weights, "sdtt"))
