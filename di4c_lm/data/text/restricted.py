"""A byte-level BPE cut down to the entries that a corpus uses, so that a large vocabulary fits a small model."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import transformers

_BATCH = 1000


def restrict(
    tokenizer: "transformers.PreTrainedTokenizerFast", texts: Iterable[str]
) -> "transformers.PreTrainedTokenizerFast":
    """The same tokenizer with the entries that occur in `texts`, those they are merged from, all bytes and special tokens.

    `texts` are cut into the same pieces as before, since every merge on the way to a kept entry is kept; other text into smaller ones. Ids
    follow the old order. Raises `ValueError` for a tokenizer that is no BPE, and for texts without a token.
    """
    from tokenizers import Tokenizer, pre_tokenizers

    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    model = plain["model"]
    if model["type"] != "BPE":
        raise ValueError(f"only a BPE can be cut down, found a tokenizer of type {model['type']}")
    used = _used(tokenizer, texts)
    if not used:
        raise ValueError("there is no token in the texts that are to say which entries stay")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    parts = {left + right: (left, right) for left, right in merges}
    wanted = [entry for entry, number in model["vocab"].items() if number in used]
    kept = set(pre_tokenizers.ByteLevel.alphabet()) | {one["content"] for one in plain["added_tokens"]}
    while wanted:
        entry = wanted.pop()
        if entry not in kept:
            kept.add(entry)
            wanted += parts.get(entry, ())
    in_order = sorted((entry for entry in model["vocab"] if entry in kept), key=lambda entry: model["vocab"][entry])
    model["vocab"] = {entry: number for number, entry in enumerate(in_order)}
    model["merges"] = [list(merge) for merge in merges if merge[0] + merge[1] in kept]
    for one in plain["added_tokens"]:
        one["id"] = model["vocab"].setdefault(one["content"], len(model["vocab"]))
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(plain)), **special)


def _used(tokenizer: "transformers.PreTrainedTokenizerFast", texts: Iterable[str]) -> set[int]:
    used, batch = set(), []
    for text in [*texts, None]:
        if text is not None:
            batch.append(text)
        if batch and (text is None or len(batch) == _BATCH):
            used |= {number for ids in tokenizer(batch, add_special_tokens=False)["input_ids"] for number in ids}
            batch = []
    return used
