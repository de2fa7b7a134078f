"""Distributions of sequences that are known exactly, to hold a sampler's distribution against.

Every source is a distribution on x in {0, ..., S-1}^D that can be sampled and whose log-likelihood and neighbouring-pair marginals are
exact, and so is what follows for the rest from any visible positions: with MASK = S where x_t hides something, `log_evidence(x_t)` is the
log-probability of what is visible and `marginals_given(x_t)` the distribution of every position given it.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from di4c_lm.data.text.characters import Ngram
from di4c_lm.data.text.hidden_markov import HiddenMarkov, certain, check_distributions, check_length
from di4c_lm.data.text.lists import ListOperations
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.rng import Rng, normal, uniform


@final
@dataclass(frozen=True)
class MarkovChain:
    """p(x) = p(x^1) Π_d p(x^{d+1} | x^d), with one table of transitions."""

    initial_S: Float64[Tensor, " S"]
    transition_SS: Float64[Tensor, "S S"]
    length: int

    def __post_init__(self) -> None:
        check_length(self.length)
        check_distributions("initial_S", self.initial_S[None])
        check_distributions("transition_SS", self.transition_SS)

    @classmethod
    def random(cls, num_states: int, length: int, *, sharpness: int | float, seed: int) -> "MarkovChain":
        """Rows softmax(sharpness · N(0, 1)), begun in its stationary distribution; at sharpness 0 the states are independent."""
        noise_SS = normal(torch.Generator().manual_seed(seed), (num_states, num_states))
        transition_SS = (sharpness * noise_SS).softmax(1)
        generator_SS = transition_SS.T - torch.eye(num_states, dtype=torch.float64)
        sums_to_one = torch.ones(1, num_states, dtype=torch.float64)
        target = torch.zeros(num_states + 1, 1, dtype=torch.float64)
        target[-1] = 1
        stationary_S = torch.linalg.lstsq(torch.cat([generator_SS, sums_to_one]), target).solution[:, 0].clamp(min=0)
        return cls(stationary_S / stationary_S.sum(), transition_SS, length)

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.initial_S)

    def sample(self, count: int, rng: Rng) -> Int64[Tensor, "N D"]:
        """`count` independent chains."""
        u_ND = uniform(rng, (count, self.length))
        states = [sample_categorical(self.initial_S.expand(count, -1), u_ND[:, 0])]
        for d in range(1, self.length):
            states.append(sample_categorical(self.transition_SS[states[-1]], u_ND[:, d]))
        return torch.stack(states, 1)

    def log_prob(self, x: Int64[Tensor, "N D"]) -> Float64[Tensor, " N"]:
        """log p(x^1) + Σ_d log p(x^{d+1} | x^d)."""
        return self.initial_S.log()[x[:, 0]] + self.transition_SS.log()[x[:, :-1], x[:, 1:]].sum(1)

    def marginals(self) -> Float64[Tensor, "D S"]:
        """p(x^d)."""
        rows = [self.initial_S]
        for _ in range(1, self.length):
            rows.append(rows[-1] @ self.transition_SS)
        return torch.stack(rows)

    def pair_marginals(self) -> Float64[Tensor, "P S S"]:
        """p(x^d) p(x^{d+1} | x^d)."""
        return self.marginals()[:-1, :, None] * self.transition_SS

    def log_evidence(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, " B"]:
        """The log-probability of what is visible."""
        return self._with_hidden.log_evidence(x_t)

    def marginals_given(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, "B D S"]:
        """p(x^d | what is visible) at every position; a visible state is certain."""
        return self._with_hidden.marginals_given(x_t)

    @cached_property
    def _with_hidden(self) -> HiddenMarkov:
        """As the hidden Markov model whose states are shown."""
        shown_SS = torch.eye(self.num_states, dtype=torch.float64)
        return HiddenMarkov(self.initial_S, self.transition_SS, shown_SS, self.length)


@final
@dataclass(frozen=True)
class CodewordMixture:
    """One of K codewords by `weight_K`; then each position is kept, or with probability `noise` replaced by a uniform state.

    A mixture of K products: what a mixture student of K components can hold exactly.
    """

    codeword_KD: Int64[Tensor, "K D"]
    weight_K: Float64[Tensor, " K"]
    num_states: int
    noise: int | float

    def __post_init__(self) -> None:
        check_length(self.length)
        check_distributions("weight_K", self.weight_K[None])
        if not 0 < self.noise <= 1:
            raise ValueError(f"noise must be in (0, 1], got {self.noise!r}")
        if not 0 <= int(self.codeword_KD.min()) <= int(self.codeword_KD.max()) < self.num_states:
            raise ValueError(f"codeword_KD holds states outside [0, {self.num_states})")

    @classmethod
    def random(cls, num_codewords: int, num_states: int, length: int, *, noise: float, seed: int) -> "CodewordMixture":
        """Uniform codewords of equal weight."""
        rng = torch.Generator().manual_seed(seed)
        codeword_KD = (uniform(rng, (num_codewords, length)) * num_states).long()
        weight_K = torch.full((num_codewords,), 1 / num_codewords, dtype=torch.float64)
        return cls(codeword_KD, weight_K, num_states, noise)

    @property
    def length(self) -> int:
        """D."""
        return self.codeword_KD.shape[1]

    def sample(self, count: int, rng: Rng) -> Int64[Tensor, "N D"]:
        """`count` independent sequences."""
        index_N = sample_categorical(self.weight_K.expand(count, -1), uniform(rng, (count,)))
        replaced_ND = uniform(rng, (count, self.length)) < self.noise
        fresh_ND = (uniform(rng, (count, self.length)) * self.num_states).long()
        return torch.where(replaced_ND, fresh_ND, self.codeword_KD[index_N])

    def components(self) -> Float64[Tensor, "K D S"]:
        """p(x^d | codeword)."""
        kept_KDS = torch.nn.functional.one_hot(self.codeword_KD, self.num_states).double()
        return (1 - self.noise) * kept_KDS + self.noise / self.num_states

    def log_prob(self, x: Int64[Tensor, "N D"]) -> Float64[Tensor, " N"]:
        """log Σ_k w_k Π_d p(x^d | k)."""
        agree_NK = (x[:, None] == self.codeword_KD).sum(2).double()
        same = math.log(1 - self.noise + self.noise / self.num_states)
        other = math.log(self.noise / self.num_states)
        return (agree_NK * same + (self.length - agree_NK) * other + self.weight_K.log()).logsumexp(1)

    def pair_marginals(self) -> Float64[Tensor, "P S S"]:
        """Σ_k w_k p(x^d | k) p(x^{d+1} | k)."""
        p_KDS = self.components()
        return torch.einsum("k,kps,kpv->psv", self.weight_K, p_KDS[:, :-1], p_KDS[:, 1:])

    def log_evidence(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, " B"]:
        """The log-probability of what is visible."""
        return self._log_joint(x_t).logsumexp(1)

    def marginals_given(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, "B D S"]:
        """p(x^d | what is visible) at every position; a visible state is certain."""
        posterior_BK = self._log_joint(x_t).softmax(1)
        return certain(torch.einsum("bk,kds->bds", posterior_BK, self.components()), x_t)

    def _log_joint(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, "B K"]:
        """log w_k + Σ_visible log p(x^d | k)."""
        log_p_KDS = torch.nn.functional.pad(self.components().log(), (0, 1))
        position_D = torch.arange(self.length)
        return log_p_KDS[:, position_D, x_t].sum(2).T + self.weight_K.log()


@final
@dataclass(frozen=True)
class CorrelatedBits:
    """Bits in groups of `group`: the last of each has, but with probability `error`, the parity of the others, which are fair.

    In groups of three or more every pair is independent: the correlation is of high order alone, and no pair shows it.
    """

    length: int
    group: int
    error: int | float

    def __post_init__(self) -> None:
        check_length(self.length)
        if self.group < 2 or self.length % self.group:
            raise ValueError(f"group must be a divisor of length={self.length}, at least 2, got {self.group}")
        if not 0 < self.error < 1:
            raise ValueError(f"error must be in (0, 1), got {self.error!r}")

    @property
    def num_states(self) -> int:
        """2."""
        return 2

    def sample(self, count: int, rng: Rng) -> Int64[Tensor, "N D"]:
        """`count` independent sequences."""
        num_groups = self.length // self.group
        bits_NGK = (uniform(rng, (count, num_groups, self.group)) < 0.5).long()
        wrong_NG = (uniform(rng, (count, num_groups)) < self.error).long()
        bits_NGK[:, :, -1] = (bits_NGK[:, :, :-1].sum(2) + wrong_NG) % 2
        return bits_NGK.flatten(1)

    def log_prob(self, x: Int64[Tensor, "N D"]) -> Float64[Tensor, " N"]:
        """Σ over groups of -(group - 1) log 2 + log(1 - error) or log(error)."""
        odd_NG = x.view(len(x), -1, self.group).sum(2) % 2
        return (self._log_parity[odd_NG] - (self.group - 1) * math.log(2)).sum(1)

    def pair_marginals(self) -> Float64[Tensor, "P S S"]:
        """A quarter each; within groups of two, (1 - error)/2 for equal bits."""
        p_PSS = torch.full((self.length - 1, 2, 2), 0.25, dtype=torch.float64)
        if self.group == 2:
            equal, unequal = (1 - self.error) / 2, self.error / 2
            p_PSS[::2] = torch.tensor([[equal, unequal], [unequal, equal]], dtype=torch.float64)
        return p_PSS

    def log_evidence(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, " B"]:
        """The log-probability of what is visible: fair bits, and the parity of groups that are whole."""
        hidden_BGK = x_t.view(len(x_t), -1, self.group) == self.num_states
        whole_BG = ~hidden_BGK.any(2)
        odd_BG = x_t.view(len(x_t), -1, self.group).sum(2) % 2
        log_last_BG = torch.where(whole_BG, self._log_parity[odd_BG] + math.log(2), 0.0)
        return log_last_BG.sum(1) - (~hidden_BGK).sum((1, 2)).double() * math.log(2)

    def marginals_given(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, "B D S"]:
        """p(x^d | what is visible) at every position: fair, but for the only hidden bit of a group. A visible bit is certain."""
        bits_BGK = x_t.view(len(x_t), -1, self.group)
        hidden_BGK = bits_BGK == self.num_states
        odd_BG = bits_BGK.masked_fill(hidden_BGK, 0).sum(2) % 2
        p_BG2 = self._log_parity.exp()[torch.stack([odd_BG, 1 - odd_BG], 2)]
        p_BG2 = torch.where(hidden_BGK.sum(2, keepdim=True) == 1, p_BG2, 0.5)
        return certain(p_BG2.repeat_interleave(self.group, 1), x_t)

    @property
    def _log_parity(self) -> Float64[Tensor, " two"]:
        return torch.tensor([1 - self.error, self.error], dtype=torch.float64).log()


Source: TypeAlias = MarkovChain | HiddenMarkov | Ngram | CodewordMixture | CorrelatedBits | ListOperations


def pair_frequencies(x: Int64[Tensor, "N D"], num_states: int) -> Float64[Tensor, "P S S"]:
    """Shares of the samples' neighbouring pairs, the empirical counterpart of `Source.pair_marginals`."""
    code_NP = x[:, :-1] * num_states + x[:, 1:]
    counts_PK = torch.nn.functional.one_hot(code_NP, num_states**2).sum(0)
    return counts_PK.view(-1, num_states, num_states).double() / len(x)
