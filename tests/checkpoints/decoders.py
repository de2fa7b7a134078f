"""Tiny decoders of transformers, written under each format's names without any of our writers, and what they say with a full mask."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

ROWS, MASK, LENGTH = 40, 7, 32  # rows of the vocabulary, MASK in the middle of them, positions
_SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
    "rope_theta": 5000.0,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_OLMO = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
}
_OLMO_WHOLE = {
    "model.embed_tokens.weight": "model.transformer.wte.weight",
    "model.norm.weight": "model.transformer.ln_f.weight",
    "lm_head.weight": "model.transformer.ff_out.weight",
}
KINDS = ("llada", "dream", "llama", "qwen2", "qwen3", "qwen3_tied")


def reference(kind: str, **changes: Any) -> Any:
    """The model of transformers that a format's network is, with random weights."""
    import transformers as hf

    class_name, more = {
        "llada": ("Llama", {}),
        "llama": ("Llama", {}),
        "dream": ("Qwen2", {}),
        "qwen2": ("Qwen2", {}),
        "qwen3": ("Qwen3", {"head_dim": 10}),
        "qwen3_tied": ("Qwen3", {"head_dim": 10, "tie_word_embeddings": True}),
    }[kind]
    config = getattr(hf, f"{class_name}Config")(**{**_SIZES, **more, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(hf, f"{class_name}ForCausalLM")(config).eval().float()
        for parameter in model.parameters():  # norms and biases too
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


@torch.no_grad()
def said(model: Any, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and last hidden states, each position seeing all."""
    num_batch, length = x_t.shape
    mask = torch.zeros(num_batch, 1, length, length, dtype=model.dtype)
    found = model(x_t, attention_mask=mask, output_hidden_states=True, use_cache=False)
    return found.logits, found.hidden_states[-1]


def config_of(kind: str, model: Any, **changes: Any) -> dict[str, Any]:
    """The `config.json` as it lies beside published weights of the kind."""
    shape = model.config
    if kind == "llada":
        found = {
            "architectures": ["LLaDAModelLM"],
            "model_type": "llada",
            "auto_map": {"AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
            "block_type": "llama",
            "activation_type": "silu",
            "layer_norm_type": "rms",
            "attention_layer_norm": False,
            "include_bias": False,
            "include_qkv_bias": False,
            "rope": True,
            "rope_full_precision": True,
            "alibi": False,
            "d_model": shape.hidden_size,
            "n_layers": shape.num_hidden_layers,
            "n_heads": shape.num_attention_heads,
            "n_kv_heads": shape.num_key_value_heads,
            "mlp_hidden_size": shape.intermediate_size,
            "mlp_ratio": 4,
            "vocab_size": shape.vocab_size,
            "embedding_size": shape.vocab_size,
            "rms_norm_eps": shape.rms_norm_eps,
            "rope_theta": 5000.0,
            "weight_tying": False,
            "max_sequence_length": LENGTH,
            "mask_token_id": MASK,
        }
    else:
        kept = {name: getattr(shape, name, value) for name, value in _SIZES.items()}
        kept |= {"rope_theta": 5000.0, "head_dim": getattr(shape, "head_dim", None)}
        name = {"dream": "DreamModel", "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
        architecture = name.get(kind, "A2DQwen3LMHeadModel")
        found = {"architectures": [architecture], "hidden_act": "silu", "mask_token_id": MASK, **kept}
        found |= {"model_type": "Dream"} if kind == "dream" else {}
    return {**found, **changes}


def tensors_of(kind: str, model: Any) -> dict[str, Tensor]:
    """The tensors under the names of the published weights; a tied head is not among them."""
    tied = model.config.tie_word_embeddings
    found = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if not tied or name != "lm_head.weight"
    }
    return {_olmo(name): tensor for name, tensor in found.items()} if kind == "llada" else found


def _olmo(name: str) -> str:
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    return _OLMO_WHOLE[name] if block is None else f"model.transformer.blocks.{block[1]}.{_OLMO[block[2]]}.weight"


def write_decoder(
    folder: Path,
    kind: str,
    *,
    dtype: torch.dtype = torch.float32,
    layout: str = "whole",
    sizes: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A folder as it lies on disk after a download: whole, in two shards (`shards`), or pickled (`bin`, `bin_shards`)."""
    model = reference(kind, **(sizes or {}))
    tensors = {name: tensor.to(dtype) for name, tensor in tensors_of(kind, model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(kind, model, **changes)))
    stem, suffix = ("pytorch_model", "bin") if layout.startswith("bin") else ("model", "safetensors")
    save: Any = torch.save if suffix == "bin" else save_file
    if "shards" not in layout:
        save(tensors, folder / f"{stem}.{suffix}")
        return folder
    names, where = sorted(tensors), {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
