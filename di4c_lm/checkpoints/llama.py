"""Decoders under Llama's names that were made to read in both directions: conversions of Llama, Qwen2 and Qwen3 (A2D)."""

from di4c_lm.checkpoints.decoders import Format, with_model, without_model
from di4c_lm.networks.decoder import DecoderConfig

KEYS = {
    "hidden_size": "hidden_size",
    "num_blocks": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_size": "intermediate_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "rows": "vocab_size",
    "length": "max_position_embeddings",
    "mask_id": "mask_token_id",
}
FIXED = {"hidden_act": ("silu",), "mlp_bias": (False,), "use_sliding_window": (False,)}


def written_as(model: DecoderConfig) -> tuple[str, str]:
    """The class of transformers that has such a network."""
    if model.qk_norm:
        return "Qwen3ForCausalLM", "qwen3"
    return ("Qwen2ForCausalLM", "qwen2") if model.qkv_bias else ("LlamaForCausalLM", "llama")


FORMAT = Format(
    name="llama",
    architectures=(
        "A2DQwen3LMHeadModel",
        "A2DQwen2LMHeadModel",
        "A2DLlamaLMHeadModel",
        "Qwen3ForCausalLM",
        "Qwen2ForCausalLM",
        "LlamaForCausalLM",
    ),
    keys=KEYS,
    fixed=FIXED,
    defaults={"rope_theta": 10_000.0, "norm_eps": 1e-6},
    to_ours=without_model,
    to_theirs=with_model,
    written_as=written_as,
)
recognises, read, write = FORMAT.recognises, FORMAT.read, FORMAT.write
