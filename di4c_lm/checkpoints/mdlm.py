"""MDLM's hub folders: tensors under `backbone.` in `model.safetensors` or `pytorch_model.bin`, and a flat `config.json`."""

from pathlib import Path

from di4c_lm.checkpoints import published
from di4c_lm.checkpoints.files import CONFIG_FILE, read_weights_file, write_checkpoint
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json

NAMES = {
    "hidden_size": "hidden_dim",
    "num_blocks": "n_blocks",
    "num_heads": "n_heads",
    "cond_dim": "cond_dim",
    "num_states": "vocab_size",
    "length": "model_length",
    "dropout": "dropout",
    "time_conditioning": "time_conditioning",
}
_CODE = "kuleshov-group/mdlm-owt"  # where transformers finds MDLM's own classes for a folder that we write


def recognises(path: Path) -> bool:
    """Whether a folder's `config.json` is MDLM's."""
    return (path / CONFIG_FILE).is_file() and read_json(path / CONFIG_FILE).get("model_type") == "mdlm"


def read(folder: Path, hints: Hints) -> Weights:
    """The network in a folder; none of the code in it is imported. Raises `ValueError` as `assemble` and the readers of files do."""
    config = read_json(folder / CONFIG_FILE)
    says = published.stated(config, NAMES, folder / CONFIG_FILE)
    bare = published.unwrap(read_weights_file(folder), folder)
    return published.assemble(bare, says, folder, hints, published.read_extra(config, "mdlm"))


def write(folder: Path, weights: Weights) -> None:
    """Write a folder that MDLM's own classes load, whole or not at all. Raises `ValueError` for a mixture student."""
    published.refuse_mixture(weights, "MDLM's format", published_allowed=False)
    published.refuse_others(weights, "MDLM's format")
    weights.check(f"saving to {folder}")
    config = {
        "architectures": ["MDLM"],
        "auto_map": {
            "AutoConfig": f"{_CODE}--configuration_mdlm.MDLMConfig",
            "AutoModelForMaskedLM": f"{_CODE}--modeling_mdlm.MDLM",
        },
        "return_dict": False,
        **published.original(weights, "mdlm").get("config", {}),
        "model_type": "mdlm",
        **published.named_settings(weights, NAMES),
    }
    tensors = {published.PREFIX + name: tensor for name, tensor in weights.tensors.items()}
    write_checkpoint(folder, tensors, published.with_extra(config, weights, "mdlm"))
