"""How varied sampled tokens are, within a sample and across samples. Entropies in nats over the model's own tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from di4c_lm.measure.flow import Metric
from di4c_lm.measure.statistics.bootstrap import Resampled, mean
from di4c_lm.measure.text.samples import TextSamples


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
    gram_NG, num_grams = _grams(tokens_ND, n)
    return num_grams / gram_NG.numel()


def repetition(tokens_ND: Int[Tensor, "N D"], n: int = 4) -> Float[Tensor, " N"]:
    """Rep-n (Welleck et al. 2020): the share of a sample's n-grams that it has had before, in [0, 1). Float64.

    Raises `ValueError` unless 1 <= n <= D.
    """
    gram_NG, _ = _grams(tokens_ND, n)
    sorted_NG = gram_NG.sort(dim=1).values
    return (sorted_NG[:, 1:] == sorted_NG[:, :-1]).sum(1).double() / gram_NG.shape[1]


@final
@dataclass(frozen=True)
class Windows:
    """The windows of `length` tokens that stand in sequences of a training text, for the share of samples that is copied from it.

    Generative perplexity alone favours what is copied; the share is the complement of n-gram novelty (McCoy et al. 2023).
    """

    seen: frozenset[bytes]
    length: int

    @classmethod
    def of(cls, training_MD: Int[Tensor, "M D"], length: int = 8) -> "Windows":
        """Of sequences read apart from each other; of shorter ones windows of all their tokens."""
        length = min(length, training_MD.shape[1])
        return cls(frozenset(_windows(training_MD, length)), length)

    def copied(self, tokens_ND: Int[Tensor, "N D"]) -> Float[ndarray, " N"]:
        """The share of each sample's windows that stand in the text, in [0, 1]. Raises `ValueError` for samples shorter than one."""
        if tokens_ND.shape[1] < self.length:
            raise ValueError(f"samples must have at least {self.length} tokens, got {tokens_ND.shape[1]}")
        found = [window in self.seen for window in _windows(tokens_ND, self.length)]
        return np.array(found, dtype=float).reshape(len(tokens_ND), -1).mean(1)


def near_duplicates(tokens_ND: Int[Tensor, "N D"], *, n: int = 5, share: float = 0.5) -> Bool[Tensor, " N"]:
    """Which samples have another of which they hold at least `share` of the n-grams, or it of theirs.

    Containment of the sets of n-grams, |A ∩ B| / min(|A|, |B|) (Broder 1997): a shift, a cut or an appended passage does not hide a copy.
    Memory O(N² + N·D). Raises `ValueError` unless 1 <= n <= D.
    """
    from scipy.sparse import csr_array

    gram_NG, num_grams = _grams(tokens_ND, n)
    num_samples, per_sample = gram_NG.shape
    sample_K, gram_K = np.repeat(np.arange(num_samples), per_sample), gram_NG.cpu().numpy().reshape(-1)
    held_NV = csr_array((np.ones(len(gram_K)), (sample_K, gram_K)), shape=(num_samples, num_grams))
    held_NV.data[:] = 1  # however often
    common_NN = (held_NV @ held_NV.T).toarray()
    size_N = common_NN.diagonal().copy()
    np.fill_diagonal(common_NN, 0)
    return torch.from_numpy((common_NN >= share * np.minimum(size_N[:, None], size_N)).any(1))


def self_bleu(texts: Sequence[str], *, legacy: bool = False) -> Float[ndarray, " N"]:
    """How much of each text is said by the others too, 0 to 100 (Zhu et al. 2018): its BLEU-4 against them, by `nltk`'s method 1.

    Over words (split at white space); texts come without their prompts. `legacy`: over characters, as the published evaluations of SDTT and
    Di4C have it by handing strings to nltk (give them with their prompts, as they do); its scale is another.
    Raises `ValueError` for fewer than 2 texts, and names an empty one.
    """
    if len(texts) < 2:
        raise ValueError(f"Self-BLEU needs at least 2 samples, got {len(texts)}")
    split = [list(text) if legacy else text.split() for text in texts]
    for i, tokens in enumerate(split):
        if not tokens:
            raise ValueError(f"sample {i} is empty: Self-BLEU needs at least one word")
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction().method1
    return 100 * np.array(
        [
            float(sentence_bleu(split[:i] + split[i + 1 :], tokens, (0.25, 0.25, 0.25, 0.25), smooth))  # pyright: ignore[reportArgumentType]
            for i, tokens in enumerate(split)
        ]
    )


def _grams(tokens_ND: Int[Tensor, "N D"], n: int) -> tuple[Int[Tensor, "N G"], int]:
    """The n-grams of each sample by number, and how many there are."""
    if not 1 <= n <= tokens_ND.shape[1] or tokens_ND.shape[0] == 0:
        raise ValueError(f"n must be 1 to the length for samples of shape {tuple(tokens_ND.shape)}, got {n}")
    grams = tokens_ND.unfold(1, n, 1).reshape(-1, n)
    distinct, number = grams.unique(dim=0, return_inverse=True)
    return number.view(len(tokens_ND), -1), len(distinct)


def _windows(tokens_ND: Int[Tensor, "N D"], length: int) -> list[bytes]:
    """Each window of each sequence, by its bytes."""
    windows_WT = tokens_ND.cpu().int().unfold(1, length, 1).reshape(-1, length).contiguous().numpy()
    return windows_WT.view(f"V{4 * length}")[:, 0].tolist()


def entropy(samples: TextSamples, bench: Any) -> dict[str, Resampled]:
    """Mean `sample_entropy`; of a prompt's continuations their mean is resampled."""
    entropy_N = sample_entropy(samples.own).cpu().numpy()
    return {"entropy": Resampled(mean, (entropy_N.reshape(-1, samples.repeats).mean(1),), samples.seeds)}


def _measure(samples: TextSamples, bench: Any) -> dict[str, float]:
    own, length = samples.own, samples.own.shape[1]
    found = {"corpus_entropy": corpus_entropy(own)}
    found |= {f"distinct_{n}": distinct_n(own, min(n, length)) for n in (1, 2, 3)}
    found["rep_4"] = float(repetition(own, min(4, length)).mean())
    found["near_duplicates"] = float(near_duplicates(own, n=min(5, length)).double().mean())
    if bench.windows is not None and length >= bench.windows.length:
        found["copied_8"] = float(bench.windows.copied(own).mean())
    if bench.settings.self_bleu_samples:
        texts = [bench.tokenizer.decode(ids) for ids in own[: bench.settings.self_bleu_samples].tolist()]
        found["self_bleu"] = float(self_bleu(texts).mean())
        if bench.settings.self_bleu_legacy:
            found["self_bleu_legacy"] = float(self_bleu(texts, legacy=True).mean())
    return found


ENTROPY = Metric(measure=entropy, part="diversity", headings={"entropy": "entropy"}, compared=("entropy",))
DIVERSITY = Metric(
    measure=_measure,
    part="diversity",
    headings={"near_duplicates": "near-dup."},
    details={
        "corpus_entropy": "corpus entropy",
        **{f"distinct_{n}": f"distinct-{n}" for n in (1, 2, 3)},
        "rep_4": "Rep-4",
        "copied_8": "copied from the training text",
        "self_bleu": "Self-BLEU",
        "self_bleu_legacy": "Self-BLEU, legacy",
    },
)
