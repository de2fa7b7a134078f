"""A language model that writes from left to right, token by token, beside those that are measured."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.samples import Sampler


def autoregressive_sampler(model: Evaluator, tokenizer: Any, length: int, batch_size: int) -> Sampler:
    """A causal LM of transformers that continues token ids to `length`: a network call a token, whatever the number of steps.

    Samples are from its whole distribution, whatever its own settings of generation. Raises `ValueError` for one with another tokenizer
    than the models', and when it is asked for texts without a beginning.
    """
    if fingerprint(model.tokenizer) != fingerprint(tokenizer):
        raise ValueError(
            f"autoregressive must be a model with the tokenizer of those it stands beside, got {model.name!r}"
        )

    def sampler(given: int | Int[Tensor, "N P"], steps: int, seed: int) -> tuple[Tensor, float]:
        if isinstance(given, int):
            raise ValueError("autoregressive must be given the beginnings of texts, got none")
        device = next(model.model.parameters()).device
        how: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "eos_token_id": None}
        how |= {"max_new_tokens": length - given.shape[1], "pad_token_id": 0, "renormalize_logits": False}
        generate: Any = model.model.generate
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            found = [
                generate(ids, attention_mask=torch.ones_like(ids), **how)
                for ids in given.to(device, torch.long).split(batch_size)
            ]
        return torch.cat(found), float(length - given.shape[1])

    return sampler
