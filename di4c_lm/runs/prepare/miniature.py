"""A decoder of random weights in a published format, with a tokenizer and chats, to try out a recipe for a large teacher in a minute:

    di4c prepare miniature kind=llada out=mini
    di4c train experiment=llada_8b teacher=mini data=mini/chats.jsonl data.length=64 mixture.codebook_size=8 train.steps=20

It has the layers of the format, the rows of its vocabulary and its kind of mask; it has learned nothing.
"""

import functools
import json
import random
from pathlib import Path
from typing import Any, Literal

import torch

from di4c_lm.checkpoints import dream, llada, llama
from di4c_lm.checkpoints.weights import Weights
from di4c_lm.core.settings import at_least, check, section, setting
from di4c_lm.data.text.documents import builtin_corpus
from di4c_lm.data.text.tokenizers import END_OF_TEXT, save_tokenizer, train_bpe
from di4c_lm.networks.decoder import Decoder, DecoderConfig
from di4c_lm.runs.command import run_command

_ENTRIES, _LENGTH, _CHATS = 512, 512, 400  # of the tokenizer; positions; chats
_MASK, _ROLE, _END = "<|mask|>", "<|role|>", "<|end|>"
_TEMPLATE = (
    f"{{% for m in messages %}}{_ROLE}{{{{ m['role'] }}}}\n{{{{ m['content'] }}}}{_END}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{_ROLE}assistant\n{{% endif %}}"
)
# Of each kind: its module, the rows of its vocabulary, and what its network has beside Llama's.
_KINDS: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "llada": (llada, 126_464, {}),
    "dream": (
        dream,
        152_064,
        {"qkv_bias": True, "num_kv_heads": 2, "rope_theta": 1e6, "norm_eps": 1e-6, "shift": True},
    ),
    "a2d": (llama, 151_936, {"qk_norm": True, "num_kv_heads": 2, "rope_theta": 1e6, "norm_eps": 1e-6, "tied": True}),
}


@section
class Settings:
    """A decoder of random weights, with a tokenizer and chats, to try out a recipe by."""

    kind: Literal["llada", "dream", "a2d"] = setting(
        "llada", "format: LLaDA's, Dream's, or a conversion of Qwen3 (a2d)"
    )
    out: str = setting("", "folder to write")
    hidden_size: int = setting(64, "width")
    num_blocks: int = setting(2, "layers")
    rows: int | None = setting(None, "rows of the vocabulary; null: as many as the format's own models have")
    seed: int = setting(0, "of the weights and the chats")

    def __post_init__(self) -> None:
        at_least(self, 1, "num_blocks")
        check(self.hidden_size % 16 == 0, "hidden_size", self.hidden_size, "a multiple of 16")
        least = _ENTRIES + 3
        check(self.rows is None or self.rows >= least, "rows", self.rows, f"at least {least}, or null")


def write_miniature(settings: Settings) -> str:
    """Write `config.json`, `model.safetensors`, a tokenizer with a chat template, and `chats.jsonl`; what was written, in words."""
    check(settings.out, "out", settings.out, "a folder to write")
    folder, (module, rows, more) = Path(settings.out), _KINDS[settings.kind]
    rows = settings.rows or rows
    tokenizer = _tokenizer()
    mask_id = tokenizer.convert_tokens_to_ids(_MASK)
    model = DecoderConfig(
        **{
            "hidden_size": settings.hidden_size,
            "num_blocks": settings.num_blocks,
            "num_heads": 4,
            "num_kv_heads": 4,
            "head_dim": settings.hidden_size // 4,
            "mlp_size": 3 * settings.hidden_size,
            **more,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Decoder(model, num_states=rows, num_rows=rows, mask_id=mask_id)
    module.write(folder, Weights.of(network, length=_LENGTH))
    save_tokenizer(tokenizer, folder)
    chats = folder / "chats.jsonl"
    chats.write_text("".join(json.dumps(one) + "\n" for one in _chats(settings.seed)), encoding="utf-8")
    size = sum(parameter.numel() for parameter in network.parameters())
    return (
        f"{folder}: {size:,} random weights in the format of {settings.kind}, mask {mask_id}; {_CHATS} chats in {chats}"
    )


def _tokenizer() -> Any:
    """A BPE of the built-in corpus, behind it the mask and those of its chat template."""
    from transformers import PreTrainedTokenizerFast

    backend = train_bpe(builtin_corpus().read(), _ENTRIES)
    found = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT)
    found.add_special_tokens({"mask_token": _MASK, "additional_special_tokens": [_ROLE, _END]})
    found.chat_template = _TEMPLATE
    return found


def _chats(seed: int) -> list[dict[str, Any]]:
    """Questions of two numbers, and their sums."""
    rng = random.Random(seed)
    pairs = [(rng.randrange(50), rng.randrange(50)) for _ in range(_CHATS)]
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {one} and {two}?"},
                {"role": "assistant", "content": f"{one} and {two} is {one + two}."},
            ]
        }
        for one, two in pairs
    ]


main = functools.partial(run_command, "di4c prepare miniature", Settings, write_miniature)
