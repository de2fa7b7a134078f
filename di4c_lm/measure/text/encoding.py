"""From a model's tokens to what an evaluator reads, whatever its tokenizer."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

from di4c_lm.measure.text.perplexity import Document


def same_vocabulary(tokenizer: Any, other: Any) -> bool:
    """Whether the same ids stand for the same strings. MASK does not count: no finished sample holds it."""
    return _vocabulary(tokenizer) == _vocabulary(other)


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    return {token: i for token, i in tokenizer.get_vocab().items() if i != tokenizer.mask_token_id}


def documents(
    tokens_ND: Int[Tensor, "N D"],
    *,
    tokenizer: Any,
    evaluator_tokenizer: Any,
    context: int = 0,
    retokenize: Literal["auto", "always"] = "auto",
    limit: int | None = None,
) -> list[Document]:
    """Samples as the evaluator reads them, one document each.

    The first `context` tokens of each sample are a prompt, given and not scored.

    `auto` hands over token ids where both vocabularies agree; otherwise, and with `always`, text is decoded by
    `tokenizer` and encoded by `evaluator_tokenizer`, prompt and continuation apart so that the border between them stays.
    BOS and EOS of the model are no text: they become the evaluator's EOS (nothing, where it has none). An evaluator whose
    tokenizer puts BOS in front of a text gets it, and then the text's first token is scored too. `limit`: longer
    documents are cut at their end (the published evaluations' truncation); None cuts nothing.

    Raises `ValueError` for a sample that still holds MASK, and for a prompt that fills the sample or the limit.
    """
    length = tokens_ND.shape[1]
    if not 0 <= context < length:
        raise ValueError(f"a prompt of {context} tokens leaves nothing of samples of {length} to score")
    if tokenizer.mask_token_id is not None:
        masked_N = (tokens_ND == tokenizer.mask_token_id).sum(1)
        if masked_N.any():
            i = int(masked_N.nonzero()[0, 0])
            raise ValueError(f"sample {i} still holds {int(masked_N[i])} MASK tokens of {length}: it is not finished")
    direct = retokenize == "auto" and same_vocabulary(tokenizer, evaluator_tokenizer)
    prefix = [] if direct else _prefix(evaluator_tokenizer)
    found = []
    for ids in tokens_ND.tolist():
        parts = (ids[:context], ids[context:])
        if not direct:
            parts = tuple(list(_reencode(part, tokenizer, evaluator_tokenizer)) for part in parts)
        given = len(prefix) + len(parts[0])
        found.append(Document(ids=tuple([*prefix, *parts[0], *parts[1]][:limit]), context=max(1, given)))
    return found


def _prefix(evaluator_tokenizer: Any) -> list[int]:
    """The BOS that the evaluator's tokenizer puts before a text by itself (Llama does, GPT-2 does not)."""
    before = evaluator_tokenizer.encode("", add_special_tokens=True)
    return before if before == [evaluator_tokenizer.bos_token_id] else []


def _reencode(ids: Sequence[int], tokenizer: Any, evaluator_tokenizer: Any) -> Iterator[int]:
    borders = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    span: list[int] = []
    for token in [*ids, None]:
        if token is not None and token not in borders:
            span.append(token)
            continue
        if span:
            text = tokenizer.decode(span, clean_up_tokenization_spaces=False)
            yield from evaluator_tokenizer.encode(text, add_special_tokens=False)
            span = []
        if token is not None and evaluator_tokenizer.eos_token_id is not None:
            yield evaluator_tokenizer.eos_token_id
