"""Documents as vectors, by a language model and by hand, and how far samples are from the validation set in them.

Axes: N documents, T tokens of the encoder, H its width, V its vocabulary, F features, K rank of the score's projections.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from di4c_lm.measure.flow import Metric
from di4c_lm.measure.statistics.bootstrap import Distance, euclidean, half_squared, standardise
from di4c_lm.measure.text.diversity import repetition, sample_entropy
from di4c_lm.measure.text.evaluator import Evaluator
from di4c_lm.measure.text.perplexity import Document, context_limit, padded
from di4c_lm.measure.text.samples import TextSamples

Vectors: TypeAlias = dict[str, Float[ndarray, "N F"]]
"""Of documents, by distance."""


@torch.inference_mode()
def encode(
    encoder: Evaluator, documents: Sequence[Document], *, batch_size: int, rank: int = 16, progress: str | None = None
) -> dict[str, Float[ndarray, "N F"]]:
    """The `mean` and the `last` of each document's final hidden states under a causal LM, and its Fisher `score`.

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
    rows: dict[int, dict[str, Tensor]] = {}
    for batch, ids_NT, present_NT in padded(documents, batch_size, weight_VH.device, progress):
        out = model(input_ids=ids_NT, attention_mask=present_NT, use_cache=False, output_hidden_states=True)
        for row, i in enumerate(batch):
            length = len(documents[i].ids)
            h_TH = out.hidden_states[-1][row, :length].float()
            p_TV = out.logits[row, : length - 1].float().softmax(1)
            pull_TH = weight_VH[ids_NT[row, 1:length]] - p_TV @ weight_VH
            score_KK = (pull_TH @ left_HK).T @ (h_TH[:-1] @ right_HK) / (length - 1)
            rows[i] = {"mean": h_TH.mean(0), "last": h_TH[-1], "score": score_KK.flatten()}
    every = [rows[i] for i in range(len(documents))]
    return {key: torch.stack([one[key] for one in every]).double().cpu().numpy() for key in ("mean", "last", "score")}


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


def mauve_score(
    sample_NF: Float[ndarray, "N F"], reference_MF: Float[ndarray, "M F"], *, seeds: Sequence[int], clusters: int = 0
) -> tuple[float, float]:
    """MAUVE (Pillutla et al. 2021) by `mauve-text` of a sample against the validation set: mean and spread over seeds of the clustering.

    `clusters` 0: a tenth of the smaller sample, at least 2 (the authors' rule). It depends on the features, on both sizes and on
    `clusters`: compare only what agrees in all of them. Raises `ValueError` for no seed, fewer than 8 documents on a side, or more
    clusters than documents.
    """
    fewest = min(len(sample_NF), len(reference_MF))
    clusters = clusters or max(2, round(fewest / 10))
    if not seeds:
        raise ValueError("mauve_seeds must hold at least one seed, got ()")
    if fewest < 8:
        raise ValueError(f"MAUVE needs at least 8 documents of each, got {len(sample_NF)} and {len(reference_MF)}")
    if not 2 <= clusters <= fewest:
        raise ValueError(f"mauve_clusters must be 0 or 2 to {fewest}, got {clusters}")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    from mauve import compute_mauve

    of: dict[str, Any] = {
        "p_features": sample_NF.astype(np.float32),
        "q_features": reference_MF.astype(np.float32),
        "num_buckets": clusters,
    }
    with _silent_stderr():  # faiss writes a warning for each clustering of fewer than 39 points a cluster
        scores = [float(compute_mauve(**of, seed=seed, verbose=False).mauve) for seed in seeds]
    return float(np.mean(scores)), float(np.std(scores))


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Without what compiled code writes to file descriptor 2."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def vectors(samples: TextSamples, bench: Any) -> Vectors:
    """Those in which each distance is taken: by the bench's encoder, and by hand."""
    read = encode(
        bench.encoder,
        bench.documents(bench.encoder, samples),
        batch_size=bench.settings.evaluator_batch_size,
        progress="features" if bench.progress else None,
    )
    by_hand = hand_features(samples.tokens, bench.reference)
    return {"gradient_moment": read["score"], "energy": read["mean"], "energy_hand": by_hand, "mauve": read["last"]}


def _distances(
    samples: TextSamples, bench: Any, reference: Vectors, names: Sequence[str]
) -> dict[str, Distance | float]:
    """The distances of these `names`, and MAUVE with its spread, of samples from a reference."""
    own, settings = bench.vectors(samples), bench.settings
    found: dict[str, Distance | float] = {}
    for name in names:
        by_MF = reference[name]

        def between(pooled_KF: ndarray, by_MF: ndarray = by_MF, name: str = name) -> ndarray:
            scaled_KF = standardise(pooled_KF, by_MF)
            return half_squared(scaled_KF) / scaled_KF.shape[1] if name == "gradient_moment" else euclidean(scaled_KF)

        found[name] = Distance(
            vectors=own[name],
            reference=by_MF,
            between=between,
            permutations=settings.permutations,
            groups=samples.seeds,
        )
    how = {"seeds": settings.mauve_seeds, "clusters": settings.mauve_clusters}
    found["mauve"], found["mauve_sd"] = mauve_score(own["mauve"], reference["mauve"], **how)
    return found


def _measure(samples: TextSamples, bench: Any) -> dict[str, Distance | float]:
    return _distances(samples, bench, bench.reference_vectors, ("gradient_moment", "energy", "energy_hand"))


def _measure_from_teacher(samples: TextSamples, bench: Any) -> dict[str, Distance | float]:
    """How far samples are from those that the teacher makes one position a call; nothing where there are none."""
    if bench.sequential is None:
        return {}
    found = _distances(samples, bench, bench.sequential_vectors, ("energy",))
    return {f"{name.removesuffix('_sd')}_teacher{'_sd' * name.endswith('_sd')}": value for name, value in found.items()}


DISTRIBUTION = Metric(
    measure=_measure,
    part="distribution",
    headings={"gradient_moment": "gradient moment", "energy": "energy", "mauve": "MAUVE"},
    details={"energy_hand": "energy (counts)"},
    compared=("gradient_moment", "energy", "energy_hand"),
)
FROM_TEACHER = Metric(
    measure=_measure_from_teacher,
    part="teacher",
    details={"energy_teacher": "energy, from the sequential teacher", "mauve_teacher": "MAUVE, against it"},
    compared=("energy_teacher",),
)
