"""MAUVE (Pillutla et al. 2021) by `mauve-text`, from features alone: nothing is loaded or fetched."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Float
from numpy import ndarray


@final
@dataclass(frozen=True, kw_only=True)
class Mauve:
    """Mean over seeds of the clustering, and their standard deviation; in (0, 1], 1 where the two laws agree."""

    estimate: float
    deviation: float
    clusters: int


def mauve_score(
    sample_NF: Float[ndarray, "N F"], reference_MF: Float[ndarray, "M F"], *, seeds: Sequence[int], clusters: int = 0
) -> Mauve:
    """MAUVE of a sample against held-out text, once for each of `seeds`, which seed the clustering.

    `clusters` 0: a tenth of the smaller sample, at least 2 (the authors' rule). It depends on the features, on both sizes and on
    `clusters`: compare only what agrees in all of them. Raises `ValueError` for no seed, fewer than 8 documents on a side, or more
    clusters than documents.
    """
    fewest = min(len(sample_NF), len(reference_MF))
    clusters = clusters or max(2, round(fewest / 10))
    if not seeds:
        raise ValueError("mauve_seeds=() is impossible: at least one seed is needed")
    if fewest < 8:
        raise ValueError(f"MAUVE needs at least 8 documents of each, got {len(sample_NF)} and {len(reference_MF)}")
    if not 2 <= clusters <= fewest:
        raise ValueError(f"mauve_clusters={clusters} is impossible: allowed are 0 and 2 to {fewest}")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    from mauve import compute_mauve

    of: dict[str, Any] = {
        "p_features": sample_NF.astype(np.float32),
        "q_features": reference_MF.astype(np.float32),
        "num_buckets": clusters,
    }
    with _silent_stderr():  # faiss writes a warning for each clustering of fewer than 39 points a cluster
        scores = [float(compute_mauve(**of, seed=seed, verbose=False).mauve) for seed in seeds]
    return Mauve(estimate=float(np.mean(scores)), deviation=float(np.std(scores)), clusters=clusters)


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
