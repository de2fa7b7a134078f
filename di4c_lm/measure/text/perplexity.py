"""What an evaluator, a causal language model, reads of samples, and the negative log-likelihood of it.

Axes: N documents, T the evaluator's tokens of the longest document in a batch, V the evaluator's vocabulary, R resamples.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Real
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from di4c_lm.core.terminal import progress_bar

EosRule: TypeAlias = Literal["all", "first", "mdlm"]


@final
@dataclass(frozen=True, kw_only=True)
class Document:
    """Token ids of the evaluator. The first `context` of them (at least 1) are given: they are read and not scored."""

    ids: tuple[int, ...]
    context: int = 1


def same_vocabulary(tokenizer: Any, other: Any) -> bool:
    """Whether the same ids stand for the same strings. MASK does not count: no finished sample holds it."""
    one, two = ({t: i for t, i in of.get_vocab().items() if i != of.mask_token_id} for of in (tokenizer, other))
    return one == two


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
    for is_border, span in itertools.groupby(ids, key=lambda token: token in borders):
        if not is_border:
            text = tokenizer.decode(list(span), clean_up_tokenization_spaces=False)
            yield from evaluator_tokenizer.encode(text, add_special_tokens=False)
        elif evaluator_tokenizer.eos_token_id is not None:
            yield from (evaluator_tokenizer.eos_token_id for _ in span)


def scored_targets(document: Document, rule: EosRule, eos_id: int | None) -> Bool[ndarray, " D"]:
    """Which tokens of a document are scored. The context never is; of the others, by `rule`:

    - `all`: every one, end-of-sequence tokens too (for packed text, where EOS parts documents);
    - `first`: up to the first EOS after the context, that one included;
    - `mdlm`: every token that is not EOS, and the document's first EOS (the mask of MDLM's
      `compute_generative_perplexity`).
    """
    ids_D = np.asarray(document.ids)
    scored_D = np.arange(len(ids_D)) >= document.context
    if rule == "all" or eos_id is None:
        return scored_D
    eos_D = ids_D == eos_id
    if rule == "mdlm":
        return scored_D & (~eos_D | (eos_D.cumsum() == 1))
    earlier_eos_D = (eos_D & scored_D).cumsum() - (eos_D & scored_D)
    return scored_D & (earlier_eos_D == 0)


def context_limit(evaluator: nn.Module) -> int | None:
    """How many tokens the evaluator reads at most, by its config; None where it states no limit."""
    config: Any = evaluator.config
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def score(
    evaluator: nn.Module,
    documents: Sequence[Document],
    *,
    batch_size: int,
    eos: EosRule = "all",
    eos_id: int | None = None,
    progress: str | None = None,
    on_batch: Callable[[list[int], Float[ndarray, "n 2"]], None] | None = None,
) -> tuple[Float[ndarray, " N"], Float[ndarray, " N"]]:
    """-log p(scored tokens | tokens before them) of each document, and the number of scored tokens, under a causal LM in eval mode.

    The first token of a document is context, as in the published tables (no BOS is put in front). Documents of
    several lengths are padded on the right and masked, so the batch size does not matter. Log-probabilities are taken
    in the dtype of the logits, float32 at least, and summed in float64. `progress`: label of a progress bar, None for
    no bar. `on_batch` is given the numbers of the documents of each batch with their nats and scored
    tokens.

    Raises `ValueError`: no document, one with nothing to score, one longer than the evaluator reads, or with an id the
    evaluator does not know.
    """
    assert not evaluator.training, "the evaluator is in train mode"
    masks = [scored_targets(document, eos, eos_id) for document in documents]
    _check(evaluator, documents, masks)
    nll_N, tokens_N = np.zeros(len(documents)), np.array([mask.sum() for mask in masks], dtype=np.float64)
    for batch, ids_NT, present_NT in padded(documents, batch_size, next(evaluator.parameters()).device, progress):
        nll_NT = _next_token_nll(evaluator, ids_NT, present_NT).cpu()
        scored_NT = pad_sequence([torch.from_numpy(masks[i]) for i in batch], batch_first=True)
        nll_N[batch] = torch.where(scored_NT[:, 1:], nll_NT, 0.0).sum(1).numpy()
        if on_batch is not None:
            on_batch(batch, np.stack([nll_N[batch], tokens_N[batch]], 1))
    return nll_N, tokens_N


def padded(
    documents: Sequence[Document], batch_size: int, device: torch.device, progress: str | None
) -> Iterator[tuple[list[int], Int[Tensor, "n T"], Int[Tensor, "n T"]]]:
    """Documents in batches, padded on the right: their numbers, their ids, and 1 where a token is. Equal lengths stand together."""
    order = sorted(range(len(documents)), key=lambda i: -len(documents[i].ids))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for batch in progress_bar(batches, desc=progress, disable=progress is None, leave=False):
        ids = [torch.tensor(documents[i].ids) for i in batch]
        ids_NT, present_NT = (pad_sequence(of, batch_first=True) for of in (ids, [torch.ones_like(one) for one in ids]))
        yield batch, ids_NT.to(device), present_NT.to(device)


@torch.inference_mode()
def _next_token_nll(
    evaluator: nn.Module, ids_NT: Int[Tensor, "N T"], present_NT: Int[Tensor, "N T"]
) -> Float[Tensor, "N T-1"]:
    logits_NTV = evaluator(input_ids=ids_NT, attention_mask=present_NT, use_cache=False).logits
    dtype = torch.promote_types(logits_NTV.dtype, torch.float32)
    rows = [  # one document at a time: no second tensor of the size of the logits
        F.cross_entropy(logits_TV[:-1].to(dtype), ids_T[1:], reduction="none")
        for logits_TV, ids_T in zip(logits_NTV, ids_NT, strict=True)
    ]
    return torch.stack(rows).double()


def _check(evaluator: nn.Module, documents: Sequence[Document], masks: list[np.ndarray]) -> None:
    if not documents:
        raise ValueError("there are 0 documents to score: at least 1 is needed")
    limit = context_limit(evaluator)
    config: Any = evaluator.config
    vocabulary = config.get_text_config().vocab_size
    for i, (document, mask) in enumerate(zip(documents, masks, strict=True)):
        length = len(document.ids)
        if document.context < 1:
            raise ValueError(f"document {i} has a context of {document.context} tokens: at least 1 is needed")
        if not mask.any():
            raise ValueError(
                f"document {i} has {length} tokens under the evaluator, {document.context} of them context: "
                "nothing is left to score"
            )
        if limit is not None and length > limit:
            raise ValueError(
                f"document {i} has {length} tokens under the evaluator, which reads at most {limit}: "
                "choose an evaluator with a longer context, shorter samples, or overflow=truncate"
            )
        if max(document.ids) >= vocabulary or min(document.ids) < 0:
            raise ValueError(
                f"document {i} holds token id {max(document.ids)}, the evaluator knows 0 to {vocabulary - 1}: "
                "the tokens are of another vocabulary"
            )


def token_weighted(nll: Float[ndarray, "*R N"], tokens: Real[ndarray, "*R N"]) -> Float[ndarray, "*R"]:
    """exp(Σ nll / Σ tokens) over the last axis: each token counts alike (MDLM)."""
    return np.asarray(np.exp(nll.sum(-1) / tokens.sum(-1)))
