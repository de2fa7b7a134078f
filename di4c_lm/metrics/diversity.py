"""How varied sampled tokens are, within a sample and across samples. Entropies in nats over the model's own tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sample_entropy(tokens_ND: Int[Tensor, "N D"]) -> Float[Tensor, " N"]:
    """Entropy of the token frequencies within each sample: 0 if it is constant, log D if all its tokens differ.

    H = -Σ_v (n_v / D) log(n_v / D), n_v the count of token v.

    The quantity that stands beside generative perplexity in the literature (OpenWebText, 1,024 GPT-2 tokens: about
    5.44). Float64. Raises `ValueError` for empty samples.
    """
    num_samples, length = tokens_ND.shape
    if num_samples == 0 or length == 0:
        raise ValueError(f"entropy needs at least one sample of one token, got shape {tuple(tokens_ND.shape)}")
    sorted_ND = tokens_ND.sort(dim=1).values
    new_ND = torch.zeros_like(sorted_ND)
    new_ND[:, 1:] = sorted_ND[:, 1:] != sorted_ND[:, :-1]
    rank_ND = new_ND.cumsum(1)  # which distinct token of its sample
    ones_ND = torch.ones(num_samples, length, dtype=torch.float64, device=tokens_ND.device)
    p_ND = torch.zeros_like(ones_ND).scatter_add_(1, rank_ND, ones_ND) / length
    return -torch.xlogy(p_ND, p_ND).sum(1).clamp(max=0.0)


def corpus_entropy(tokens_ND: Int[Tensor, "N D"]) -> float:
    """Entropy of the token frequencies over all samples together.

    Falls when samples repeat each other, which `sample_entropy` cannot see.
    """
    return float(sample_entropy(tokens_ND.reshape(1, -1)))


def distinct_n(tokens_ND: Int[Tensor, "N D"], n: int) -> float:
    """Distinct n-grams over all n-grams of all samples (Li et al. 2016, distinct-n), in (0, 1].

    Raises `ValueError` unless 1 <= n <= D.
    """
    if not 1 <= n <= tokens_ND.shape[1] or tokens_ND.shape[0] == 0:
        raise ValueError(
            f"n={n} is impossible for samples of shape {tuple(tokens_ND.shape)}: allowed is 1 to the length"
        )
    grams = tokens_ND.unfold(1, n, 1).reshape(-1, n)
    return grams.unique(dim=0).shape[0] / grams.shape[0]
