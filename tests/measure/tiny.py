"""Tiny evaluators and tokenizers for the tests of `di4c_lm.metrics`."""

from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

VOCABULARY = 11


def gpt2(*, vocabulary: int = VOCABULARY, context: int = 16, scale: float = 1.0) -> nn.Module:
    """A random GPT-2 in float64 and eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_positions=context, n_embd=8, n_layer=2, n_head=2, initializer_range=0.5)
        )
    for parameter in model.parameters():
        parameter.data *= scale
    return model.double().eval()  # type: ignore[no-any-return]


def words(*entries: str, mask: bool = True, bos: bool = False) -> Any:
    """A whitespace tokenizer with EOS first, `entries`, and MASK as its last id. `bos`: it puts BOS before every text by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = ["<eos>", "<unk>", *entries, *(["<mask>"] if mask else []), *(["<bos>"] if bos else [])]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", len(vocabulary) - 1)]
        )
    special = {"eos_token": "<eos>", "unk_token": "<unk>"}
    special |= {"mask_token": "<mask>"} if mask else {}
    special |= {"bos_token": "<bos>"} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def letters(*, mask: bool = True) -> Any:
    """A tokenizer of single characters over the same alphabet as `words('aa', 'ab', ...)`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = ["<end>", "a", "b", "c", " ", *(["<mask>"] if mask else [])]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
