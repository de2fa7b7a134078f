"""Small checkpoints laid out as the published ones are, written without any of our writers."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LENGTH = 6
State = dict[str, Tensor]


def named(network: Any, prefix: str = "backbone.") -> State:
    """Its tensors, each with storage of its own, under `prefix`, in the published order."""
    return OrderedDict((prefix + name, tensor.clone()) for name, tensor in network.tensors().items())


def mdlm_config(network: Any, **changes: Any) -> dict[str, Any]:
    """A `config.json` of MDLM's hub models."""
    config = {
        "architectures": ["MDLM"],
        "auto_map": {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
        "cond_dim": network.config.cond_dim,
        "dropout": 0.1,
        "hidden_dim": network.config.hidden_size,
        "model_length": LENGTH,
        "model_type": "mdlm",
        "n_blocks": network.config.num_blocks,
        "n_heads": network.config.num_heads,
        "return_dict": False,
        "time_conditioning": False,
        "torch_dtype": "float32",
        "transformers_version": "4.38.2",
        "vocab_size": network.num_states,
    }
    return {**config, **changes}


def training_config(network: Any, **changes: Any) -> dict[str, Any]:
    """A training config of SDTT; MDLM's and Di4C's have the same `model`."""
    config = {
        "mode": "train",
        "time_conditioning": False,
        "T": 0,
        "model": {
            "name": "small",
            "type": "ddit-orig",
            "hidden_size": network.config.hidden_size,
            "cond_dim": network.config.cond_dim,
            "length": LENGTH,
            "n_blocks": network.config.num_blocks,
            "n_heads": network.config.num_heads,
            "scale_by_sigma": True,
            "dropout": 0.1,
            "tie_word_embeddings": False,
        },
        "parameterization": {
            "name": "multi-round-sdtt",
            "start_from_hf": True,
            "checkpoint_path": "kuleshov-group/mdlm-owt",
        },
        "training": {"ema": 0.9999, "sampling_eps": 1e-5},
        "tokenizer": {"name": "gpt2"},
        "data_preprocess": {"seq_len": "${model.length}"},
    }
    return {**config, **changes}


def write_folder(folder: Path, tensors: State, config: dict[str, Any], *, pickled: bool = False) -> Path:
    """A hub folder as it lies on disk after a download."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_ckpt(
    path: Path, network: Any, ema: Any, *, prefix: str = "backbone.", more: dict[str, Any] | None = None
) -> Path:
    """A Lightning checkpoint: raw weights of `network`, the EMA list of `ema`."""
    shadow = None if ema is None else [parameter.detach().clone() for parameter in ema.parameters()]
    content = {
        "epoch": 0,
        "global_step": 7,
        "pytorch-lightning_version": "2.2.1",
        "state_dict": named(network, prefix),
        "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 0}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.5), "dirpath": "x"}},
        "optimizer_states": [
            {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 3e-4, "betas": (0.9, 0.999)}]}
        ],
        "lr_schedulers": [{"last_epoch": 7}],
        "ema": None if shadow is None else {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow},
        **(more or {}),
    }
    torch.save(content, path)
    return path
