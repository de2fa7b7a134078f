"""LLaDA, LLaDA-1.5 and iLLaDA: a Llama under the names of OLMo."""

import re

from di4c_lm.checkpoints.decoders import Format

_BLOCK = {  # ours: theirs
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
_WHOLE = {"embed_tokens": "wte", "norm": "ln_f", "lm_head": "ff_out"}
_OURS, _THEIRS = (
    re.compile(r"layers\.(\d+)\.(.+)\.(\w+)"),
    re.compile(r"model\.transformer\.blocks\.(\d+)\.(.+)\.(\w+)"),
)


def to_ours(name: str) -> str:
    """Their name in ours; one that is unknown stays."""
    inverse = {theirs: ours for ours, theirs in _BLOCK.items()}
    if found := _THEIRS.fullmatch(name):
        return f"layers.{found[1]}.{inverse.get(found[2], found[2])}.{found[3]}"
    stem, _, kind = name.removeprefix("model.transformer.").rpartition(".")
    ours = {theirs: ours for ours, theirs in _WHOLE.items()}.get(stem)
    return name if ours is None else f"{ours}.{kind}"


def to_theirs(name: str) -> str:
    """The inverse of `to_ours`."""
    if found := _OURS.fullmatch(name):
        return f"model.transformer.blocks.{found[1]}.{_BLOCK.get(found[2], found[2])}.{found[3]}"
    stem, _, kind = name.rpartition(".")
    return f"model.transformer.{_WHOLE[stem]}.{kind}" if stem in _WHOLE else name


FORMAT = Format(
    name="llada",
    architectures=("LLaDAModelLM",),
    keys={
        "hidden_size": "d_model",
        "num_blocks": "n_layers",
        "num_heads": "n_heads",
        "num_kv_heads": "n_kv_heads",
        "mlp_size": "mlp_hidden_size",
        "rope_theta": "rope_theta",
        "norm_eps": "rms_norm_eps",
        "tied": "weight_tying",
        "qkv_bias": "include_qkv_bias",
        "rows": "embedding_size",
        "length": "max_sequence_length",
        "mask_id": "mask_token_id",
    },
    fixed={
        "block_type": ("llama",),
        "activation_type": ("silu",),
        "layer_norm_type": ("rms",),
        "rope": (True,),
        "alibi": (False,),
        "include_bias": (False,),
        "attention_layer_norm": (False,),
        "input_emb_norm": (False,),
        "scale_logits": (False,),
        "clip_qkv": (None,),
    },
    defaults={"rope_theta": 10_000.0, "norm_eps": 1e-5},
    to_ours=to_ours,
    to_theirs=to_theirs,
    written_as=lambda _: ("LLaDAModelLM", "llada"),
)
recognises, read, write = FORMAT.recognises, FORMAT.read, FORMAT.write
