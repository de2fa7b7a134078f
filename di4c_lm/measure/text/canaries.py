"""Samplers without a model, made of held-out text. A suite that ranks one of them with the models measures the wrong thing."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from di4c_lm.measure.text.diversity import sample_entropy


def periodic(reference_MD: Int[Tensor, "M D"], num_samples: int, *, seed: int) -> Int[Tensor, "N D"]:
    """The k most frequent tokens over and over, each sample from another phase; k = exp(mean sample entropy), so that entropy looks right.

    Evaluators that copy from their context find it fluent (arXiv 2606.08417: perplexity 21.6 on OpenWebText, the data's being 17.2).
    """
    length = reference_MD.shape[1]
    tokens_V, counts_V = reference_MD.unique(return_counts=True)
    period = max(1, min(len(tokens_V), round(math.exp(float(sample_entropy(reference_MD).mean())))))
    cycle_K = tokens_V[counts_V.argsort(descending=True, stable=True)[:period]]
    phase_N1 = torch.randint(period, (num_samples, 1), generator=torch.Generator().manual_seed(seed))
    return cycle_K[(phase_N1 + torch.arange(length)) % period]


def tiled(real_KD: Int[Tensor, "K D"], num_samples: int) -> Int[Tensor, "N D"]:
    """One real text as every sample: fluent, of normal entropy, and a collapse that no measure of single samples sees."""
    return real_KD[:1].repeat(num_samples, 1)


def shuffled(real_KD: Int[Tensor, "K D"], num_samples: int, *, seed: int) -> Int[Tensor, "N D"]:
    """Real texts, the tokens of each in random order: every count is right and nothing is said."""
    rng = torch.Generator().manual_seed(seed)
    chosen_ND = real_KD[torch.arange(num_samples) % len(real_KD)]
    return chosen_ND.gather(1, torch.rand(chosen_ND.shape, generator=rng).argsort(1))
