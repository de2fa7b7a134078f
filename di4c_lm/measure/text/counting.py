"""Models that need no network: n-grams of the training text, and the teacher's marginals with token bigrams.

A model that these beat has learned little that counting does not know. Axes: N sequences, D tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int, Int64
from numpy import ndarray
from torch import Tensor, nn

from di4c_lm.measure.text.gen_ppl import Baseline
from di4c_lm.measure.text.samples import Sampler, TextModel, TextRun, sampler_of
from di4c_lm.mixtures.class_counts import pair_log_ratios
from di4c_lm.processes.denoiser import OutputHead, Prediction, Walk
from di4c_lm.processes.rng import Rng

ORDERS = (2, 3, 5)  # of the n-grams that reports have
BIGRAM = "token_bigram"
_MOST_STATES = 4096  # beyond it a table of pairs of tokens is too large to be walked


@final
@dataclass(frozen=True)
class _Order:
    """The n-grams of one order. A context is the number of its (n-1)-gram; its n-grams stand next to each other, by their last token."""

    total: Float64[ndarray, " C"]  # of the counts of each context
    key: Int64[ndarray, " G"]  # context * (S + 1) + token, ascending
    mass: Float64[ndarray, " G+1"]  # count less the discount, summed up from the first n-gram on
    first: Int64[ndarray, " C+1"]  # of each context its first n-gram
    backoff: Float64[ndarray, " C"]  # what the discounts of a context leave to the order below, as a share


class NgramModel:
    """n-grams of sequences that are read apart from each other, by interpolated Kneser-Ney (Chen and Goodman 1999, section 3).

    p(w | c) = max(n(c w) - d, 0) / n(c ·) + d N(c ·) / n(c ·) p(w | c without its first token), with n the counts at the highest order and
    the numbers of different tokens before at all below, N(c ·) the number of different tokens behind c, d = n_1 / (n_1 + 2 n_2) from the
    numbers of n-grams seen once and twice, and 1/S below all.
    """

    def __init__(self, tokens_ND: Int[ndarray, "N D"], num_states: int, order: int) -> None:
        if order < 1 or tokens_ND.size == 0:
            raise ValueError(f"order must be at least 1 and tokens some, got {order} and {tokens_ND.shape}")
        self.num_states, self.order = num_states, order
        self._width = num_states + 1  # the last stands before a sequence begins
        padded = self._padded(tokens_ND)
        grams, keys = np.zeros(padded.shape, dtype=np.int64), []  # the number of the n-gram that ends at each place
        unique_rows: list[Int64[ndarray, ...]] = []
        for length in range(1, order + 1):
            before = np.concatenate([np.zeros_like(grams[:, :1]), grams[:, :-1]], 1) if length > 1 else grams
            key, grams = _numbered(before * self._width + padded)
            keys.append(key)
            unique_rows.append(grams)
        self._keys = keys
        self._orders = [self._counted(keys, unique_rows, padded, length) for length in range(1, order + 1)]

    def _padded(self, tokens_ND: Int[ndarray, "N D"]) -> Int64[ndarray, "N E"]:
        beginning = np.full((len(tokens_ND), self.order - 1), self.num_states, dtype=np.int64)
        return np.concatenate([beginning, tokens_ND.astype(np.int64)], 1)

    def _counted(self, keys: list[Any], grams: list[Any], padded: Any, length: int) -> _Order:
        key, num_contexts = keys[length - 1], 1 if length == 1 else len(keys[length - 2])
        inside = slice(self.order - 1, None)  # n-grams that end within a sequence
        if length == self.order:
            count = np.bincount(grams[length - 1][:, inside].ravel(), minlength=len(key))
        else:  # of each n-gram the number of different (n+1)-grams that end in it
            longer, here = grams[length][:, inside].ravel(), grams[length - 1][:, inside].ravel()
            _, at = np.unique(longer, return_index=True)
            count = np.bincount(here[at], minlength=len(key))
        once, twice = int((count == 1).sum()), int((count == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.0
        context = key // self._width
        total = np.bincount(context, weights=count, minlength=num_contexts)
        kinds = np.bincount(context, weights=count > 0, minlength=num_contexts)
        first = np.searchsorted(key, np.arange(num_contexts + 1) * self._width)
        backoff = np.where(total > 0, discount * kinds / np.maximum(total, 1), 1.0)
        mass = np.concatenate([[0.0], np.maximum(count - discount, 0).cumsum()])
        return _Order(total, key, mass, first, backoff)

    def _contexts(self, recent: Int64[ndarray, "N T"], length: int) -> Int64[ndarray, " N"]:
        """The number of the (length-1)-gram that ends each row; -1 where it was never seen."""
        found = np.zeros(len(recent), dtype=np.int64)
        for place in range(length - 1):
            key = found * self._width + recent[:, recent.shape[1] - (length - 1) + place]
            at = np.searchsorted(self._keys[place], key).clip(max=len(self._keys[place]) - 1)
            found = np.where((found >= 0) & (self._keys[place][at] == key), at, -1)
        return found

    def log_prob(self, tokens_ND: Int[ndarray, "N D"]) -> Float64[ndarray, " N"]:
        """log p of each sequence, in nats."""
        padded = self._padded(tokens_ND)
        total_N = np.zeros(len(tokens_ND))
        for place in range(self.order - 1, padded.shape[1]):
            total_N += np.log(self.next_prob(padded[:, place - self.order + 1 : place], padded[:, place]))
        return total_N

    def next_prob(self, recent: Int64[ndarray, "N T"], token_N: Int64[ndarray, " N"]) -> Float64[ndarray, " N"]:
        """p(token | the recent ones), of each row."""
        p_N = np.full(len(token_N), 1 / self.num_states)
        for length, one in enumerate(self._orders, 1):
            context = self._contexts(recent, length)
            seen, context = context >= 0, context.clip(min=0)
            key = context * self._width + token_N
            at = np.searchsorted(one.key, key).clip(max=len(one.key) - 1)
            mass = np.where(one.key[at] == key, one.mass[at + 1] - one.mass[at], 0.0)
            known = seen & (one.total[context] > 0)
            share = mass / np.maximum(one.total[context], 1) + one.backoff[context] * p_N
            p_N = np.where(known, share, p_N)
        return p_N

    def sample(
        self, num_samples: int, length: int, seed: int, given: Int[ndarray, "N P"] | None = None
    ) -> Int64[ndarray, "N D"]:
        """Sequences from left to right, each token of the highest order that does not back off; they begin with what is `given`."""
        rng = np.random.default_rng(seed)
        made = np.full((num_samples, self.order - 1 + length), self.num_states, dtype=np.int64)
        start = self.order - 1 + (0 if given is None else given.shape[1])
        if given is not None:
            made[:, self.order - 1 : start] = given
        for place in range(start, made.shape[1]):
            recent = made[:, place - self.order + 1 : place]
            token_N, open_N = rng.integers(self.num_states, size=num_samples), np.ones(num_samples, dtype=bool)
            for order in range(self.order, 0, -1):
                one, context = self._orders[order - 1], self._contexts(recent, order)
                stay_N, u_N = rng.random(num_samples), rng.random(num_samples)
                here_N = open_N & (context >= 0)
                context = context.clip(min=0)
                here_N &= (one.total[context] > 0) & (stay_N >= one.backoff[context])
                low, high = one.mass[one.first[context]], one.mass[one.first[context + 1]]
                at = np.searchsorted(one.mass, low + u_N * (high - low), side="right") - 1
                token_N = np.where(here_N, one.key[at.clip(0, len(one.key) - 1)] % self._width, token_N)
                open_N &= ~here_N
            made[:, place] = token_N
        return made[:, self.order - 1 :]


def _numbered(key: Int64[ndarray, "N E"]) -> tuple[Int64[ndarray, " G"], Int64[ndarray, "N E"]]:
    unique, number = np.unique(key, return_inverse=True)
    return unique, number.reshape(key.shape)


def ngrams(tokens_ND: Int[Tensor, "N D"], num_states: int) -> dict[str, NgramModel]:
    """The models of `ORDERS` by name, counted from sequences."""
    return {f"ngram_{order}": NgramModel(tokens_ND.numpy(), num_states, order) for order in ORDERS}


def ngram_sampler(model: NgramModel, length: int) -> Sampler:
    """An n-gram model as a sampler: it takes no network call, whatever the number of steps."""

    def sampler(given: int | Int[Tensor, "N P"], steps: int, seed: int) -> tuple[Tensor, float]:
        prompts, count = (None, given) if isinstance(given, int) else (given.cpu().numpy(), len(given))
        return torch.from_numpy(model.sample(count, length, seed, prompts)), 0.0

    return sampler


@dataclass(frozen=True)
class _WithBigrams(Prediction):
    """p(x_R | x_t) = Π_d p^d(x^d) r(x^{d-1}, x^d) / normaliser, from left to right; r is 1 where d - 1 is not sampled in the same call.

    What x_t shows the network has seen: only what is sampled together is tied. The marginals are not kept.
    """

    log_ratio: Float[Tensor, "S S"]
    x_t: Int64[Tensor, "B D"]
    mask_id: int
    is_product: ClassVar[bool] = False

    def walk(self, where: Bool[Tensor, "B D"], rows: int) -> Walk:
        """See `Prediction.walk`: one position of all sequences after the other."""
        made_BD = torch.full_like(F.pad(self.x_t, (1, 0)), self.mask_id)  # one place to the right; MASK: not made here
        for position in where.any(0).nonzero()[:, 0].tolist():
            row_N = where[:, position].nonzero()[:, 0]
            at = row_N, torch.full_like(row_N, position)
            state_N = yield at, self.logits(*at) + self.log_ratio[made_BD[row_N, position]]
            assert state_N is not None
            made_BD[row_N, position + 1] = state_N


class _BigramDenoiser(nn.Module):
    """A network whose predictions are sampled with bigrams."""

    has_latents = False

    def __init__(self, network: nn.Module, log_ratio_SS: Float[Tensor, "S S"]) -> None:
        super().__init__()
        self.network: Any = network
        log_ratio_SS[self.network.mask_id] = 0  # what is not known says nothing
        log_ratio_SS[:, self.network.mask_id] = 0
        self.register_buffer("log_ratio", log_ratio_SS)
        self.mask_id, self.num_states = self.network.mask_id, self.network.num_states

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> None:
        """No λ."""

    def output_head(self) -> OutputHead:
        """The network's."""
        return self.network.output_head()

    def forward(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: None = None, cond: Any = None
    ) -> Prediction:
        """The network's prediction, walked from left to right."""
        said = self.network(x_t, t, None, cond)
        return _WithBigrams(said.features, said.output_head, self.get_buffer("log_ratio"), x_t, self.mask_id)


def bigram_sampler(
    teacher: TextModel, tokens_ND: Int64[Tensor, "N D"], batch_size: int, how: Mapping[str, Any]
) -> Sampler | None:
    """The teacher's marginals times the pair ratios p(a, b) / p(a) p(b) of neighbouring tokens as counted, nothing learned.

    None for too many tokens, for a teacher that is a mixture itself, and for one of uniform noise.
    """
    network, num_states = teacher.denoiser, teacher.denoiser.num_states
    if num_states > _MOST_STATES or network.has_latents or not teacher.masks:
        return None
    device = next(network.parameters()).device
    denoiser = _BigramDenoiser(network, pair_log_ratios(tokens_ND, num_states).to(device))
    return sampler_of(replace(teacher, denoiser=denoiser.eval()), batch_size, **how)


def baselines(
    run: TextRun, counted: Mapping[str, NgramModel], batch_size: int, how: Mapping[str, Any] | None = None
) -> dict[str, Baseline]:
    """What models are measured beside, by name: n-grams of the training text, and token bigrams over the teacher's marginals.

    `how` the bigrams are sampled: absent, as the run's first model is.
    """
    found = {name: Baseline(ngram_sampler(model, run.student.length), (1,)) for name, model in counted.items()}
    name, teacher = next(iter(run.models.items()))
    if run.training is None or not counted:
        return found
    bigrams = bigram_sampler(teacher, run.training, batch_size, run.how.get(name, {}) if how is None else how)
    return found | ({BIGRAM: Baseline(bigrams)} if bigrams else {})


def perplexity(model: NgramModel, tokens_ND: Int[Tensor, "N D"]) -> float:
    """exp of the mean nats a token of sequences."""
    return float(np.exp(-model.log_prob(tokens_ND.numpy()).sum() / tokens_ND.numel()))
