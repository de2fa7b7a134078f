"""BD3-LM's hub folders at full block: where the block is the whole sequence they are masked diffusion models under MDLM's names.

Smaller blocks attend block by block to what stands before them, which the DiT here does not. `adaln=false` leaves out the noise level.
"""

from pathlib import Path

import torch
from torch import Tensor

from di4c_lm.checkpoints import mdlm, published
from di4c_lm.checkpoints.files import CONFIG_FILE, read_weights_file, write_checkpoint
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json

_NAMES = {**mdlm.NAMES, "modulation": "adaln"}
_CODE = "kuleshov-group/bd3lm-owt-block_size1024-pretrain"  # where transformers finds BD3-LM's own classes for a folder that we write
_TIMES = (
    "sampling_eps_min",
    "sampling_eps_max",
)  # the range of masking rates that it was trained at, buffers beside the network
_BESIDE = "beside"  # in what is known of the source: those that were in its file


def recognises(path: Path) -> bool:
    """Whether a folder's `config.json` is BD3-LM's."""
    config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
    return config.get("model_type") == "bd3lm" and "block_size" in config


def read(folder: Path, hints: Hints) -> Weights:
    """The network in a folder; none of the code in it is imported.

    Raises `ValueError` for blocks shorter than the sequence, causal attention, and as `assemble` and the readers of files do.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    says = published.stated(config, _NAMES, path)
    block, length = config["block_size"], says.get("length", hints.length)
    if block != length:
        raise ValueError(
            f"{path}: block_size must be model_length={length}, the whole sequence, got {block!r}: "
            "attention block by block is not built here"
        )
    if config.get("causal"):
        raise ValueError(f"{path}: causal must be false, got {config['causal']!r}: attention goes both ways here")
    tensors = read_weights_file(folder)
    beside = {name: float(tensors[name]) for name in _TIMES if name in tensors and tensors[name].dim() == 0}
    kept = published.read_extra(config, "bd3lm", **{_BESIDE: beside})
    return published.assemble(published.unwrap(tensors, folder), says, folder, hints, kept)


def write(folder: Path, weights: Weights) -> None:
    """Write a folder that BD3-LM's own classes load, whole or not at all. Raises `ValueError` for what the format cannot say."""
    published.refuse_mixture(weights, "BD3-LM's format", published_allowed=False)
    published.refuse_others(weights, "BD3-LM's format", modulation=(True, False))
    weights.check(f"saving to {folder}")
    kept = published.original(weights, "bd3lm")
    fresh = {
        "architectures": ["BD3LM"],
        "auto_map": {
            "AutoConfig": f"{_CODE}--configuration_bd3lm.BD3LMConfig",
            "AutoModelForMaskedLM": f"{_CODE}--modeling_bd3lm.BD3LM",
        },
        "model_type": "bd3lm",
        "block_size": weights.sizes["length"],
        "attn_backend": "sdpa",
        "causal": False,
        "cross_attn": False,
        "return_dict": False,
        "var_min": False,
    }
    config = {**kept.get("config", fresh), **published.named_settings(weights, _NAMES)}
    tensors: dict[str, Tensor] = {published.PREFIX + name: tensor for name, tensor in weights.tensors.items()}
    tensors |= {name: torch.tensor(value) for name, value in kept.get(_BESIDE, {}).items()}
    write_checkpoint(folder, tensors, published.with_extra(config, weights, "bd3lm"))
