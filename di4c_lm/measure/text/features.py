"""Documents as vectors: what a language model makes of them, and what can be counted by hand.

Axes: N documents, T tokens of the encoder, H its width, V its vocabulary, F features, K rank of the score's projections.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor
from tqdm import tqdm

from di4c_lm.measure.text.diversity import repetition, sample_entropy
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.perplexity import Document, context_limit


@final
@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Of each document: the mean and the last of the encoder's final hidden states, and its Fisher score."""

    mean: Float[ndarray, "N H"]
    last: Float[ndarray, "N H"]
    score: Float[ndarray, "N F"]


@torch.inference_mode()
def encode(
    encoder: Evaluator, documents: Sequence[Document], *, batch_size: int, rank: int = 16, progress: str | None = None
) -> Encoded:
    """Hidden states and Fisher scores of documents under a causal LM.

    The Fisher score is d/dA at A = 0 of the mean over tokens of log p(x_{t+1} | x_{<=t}) with logits W (I + P A Qᵀ) h_t, W the output
    embedding and h_t the last hidden state: Pᵀ [mean_t (W[x_{t+1}] - E_{v~p} W[v]) h_tᵀ] Q, in closed form. P and Q are fixed random
    (H, K) with K = `rank`, left out where `rank` >= H. Its mean over text that the encoder models well is about 0; the squared distance of
    two means of it is the "gradient moment", an MMD with the kernel of Fisher scores (Jaakkola and Haussler 1998). Exact where the logits
    are W h, as in GPT-2 and Llama. Raises `ValueError` for a document of fewer than 2 tokens or longer than the encoder reads.
    """
    limit = context_limit(encoder.model)
    for i, document in enumerate(documents):
        if len(document.ids) < 2 or (limit is not None and len(document.ids) > limit):
            raise ValueError(
                f"document {i} has {len(document.ids)} tokens under the feature model {encoder.name!r}, which reads 2 to "
                f"{limit or 'any number'}: choose another, or overflow=truncate"
            )
    model: Any = encoder.model
    weight_VH = model.get_output_embeddings().weight.float()
    left_HK, right_HK = _projections(weight_VH.shape[1], rank, weight_VH.device)
    order = sorted(range(len(documents)), key=lambda i: -len(documents[i].ids))
    rows: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc=progress, disable=progress is None, leave=False):
        batch = order[start : start + batch_size]
        ids_NT = torch.zeros(len(batch), len(documents[batch[0]].ids), dtype=torch.long, device=weight_VH.device)
        present_NT = torch.zeros_like(ids_NT)
        for row, i in enumerate(batch):
            ids_NT[row, : len(documents[i].ids)] = torch.tensor(documents[i].ids)
            present_NT[row, : len(documents[i].ids)] = 1
        out = model(input_ids=ids_NT, attention_mask=present_NT, use_cache=False, output_hidden_states=True)
        for row, i in enumerate(batch):
            length = len(documents[i].ids)
            h_TH = out.hidden_states[-1][row, :length].float()
            p_TV = out.logits[row, : length - 1].float().softmax(1)
            pull_TH = weight_VH[ids_NT[row, 1:length]] - p_TV @ weight_VH
            score_KK = (pull_TH @ left_HK).T @ (h_TH[:-1] @ right_HK) / (length - 1)
            rows[i] = (h_TH.mean(0), h_TH[-1], score_KK.flatten())
    stacked = [torch.stack([rows[i][part] for i in range(len(documents))]).double().cpu().numpy() for part in range(3)]
    return Encoded(mean=stacked[0], last=stacked[1], score=stacked[2])


def _projections(width: int, rank: int, device: torch.device) -> tuple[Float[Tensor, "H K"], Float[Tensor, "H K"]]:
    if rank >= width:
        return torch.eye(width, device=device), torch.eye(width, device=device)
    rng = torch.Generator().manual_seed(0)
    left_HK, right_HK = torch.randn(2, width, rank, generator=rng).div(width**0.5)
    return left_HK.to(device), right_HK.to(device)


def hand_features(tokens_ND: Int[Tensor, "N D"], reference_MD: Int[Tensor, "M D"]) -> Float[ndarray, "N F"]:
    """Seven numbers a sample that need no model.

    Its entropy, Rep-1, Rep-2 and Rep-4, and the mean, spread and lowest decile of its tokens' log frequency in `reference_MD` (add-one).
    """
    num_states = int(max(tokens_ND.max(), reference_MD.max())) + 1
    count_S = torch.bincount(reference_MD.flatten(), minlength=num_states).double() + 1
    log_ND = (count_S / count_S.sum()).log()[tokens_ND]
    longest = tokens_ND.shape[1]
    columns = [
        sample_entropy(tokens_ND),
        *(repetition(tokens_ND, min(n, longest)) for n in (1, 2, 4)),
        log_ND.mean(1),
        log_ND.std(1, correction=0),
        log_ND.quantile(0.1, dim=1),
    ]
    return np.stack([column.cpu().numpy() for column in columns], 1)
