"""Character n-grams of a text: a distribution as hard as the text's spelling, whose posterior marginals are exact.

The alphabet is that of text8 (Mahoney 2011): the letters a to z, and the space for any run of other characters.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from di4c_lm.core.settings import check
from di4c_lm.data.text.documents import builtin_corpus
from di4c_lm.data.text.files import file_documents
from di4c_lm.data.text.hidden_markov import certain, check_length
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.rng import Rng, uniform

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
LONGEST = 5  # a table of S^5 is the largest that is held
_CELLS, _ROWS = (
    2**23,
    32,
)  # numbers of a message, and sequences, that are worked on at once, so that they stay in the cache
_DISCOUNT = 0.5  # where nothing was seen once: above 0, so that no string is impossible
_LEAST = 1e-37  # of a sum that is divided by, in float32


@final
@dataclass(frozen=True)
class Ngram:
    """p(x) = p(x^1 ... x^{n-1}) Π_d p(x^d | x^{d-n+1} ... x^{d-1}): a Markov chain of order n - 1, as a full table.

    Forward–backward goes over the S^{n-1} last states, in `precision`; a posterior costs 2 D S^n multiplications a sequence. MASK, where
    something is hidden, is S.
    """

    first: Float64[Tensor, "*C"]  # n - 1 axes
    table: Float64[Tensor, "*C S"]  # n axes, the last of which sums to 1
    length: int
    precision: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        check_length(self.length)
        check(self.length >= self.order, "length", self.length, f"at least the order, {self.order}")
        for name, sums in (("first", self.first.sum()), ("table", self.table.sum(-1))):
            if bool(((sums - 1).abs() > 1e-9).any()):
                raise ValueError(f"{name} must hold probabilities that sum to 1")

    @classmethod
    def of_text(cls, *, order: int, length: int, data: str | None = None) -> "Ngram":
        """Interpolated Kneser-Ney of the characters of `data`, a file or folder of documents; None: the built-in corpus.

        Raises `ValueError` for an order out of range, and a path without text.
        """
        allowed = f"a whole number from 2 to {LONGEST}"
        check(order in range(2, LONGEST + 1), "source.order", order, allowed)
        documents = builtin_corpus() if data is None else file_documents(data)
        state_N = states_of(documents.read())
        check(len(state_N) > order, "data", data, f"text with more than {order} characters from a to z")
        first = kneser_ney(state_N, 1)
        for n in range(2, order):
            first = first[..., None] * kneser_ney(state_N, n)
        return cls(torch.from_numpy(first), torch.from_numpy(kneser_ney(state_N, order)), length)

    @property
    def order(self) -> int:
        """n."""
        return self.table.dim()

    @property
    def num_states(self) -> int:
        """S."""
        return len(self.table)

    def sample(self, count: int, rng: Rng) -> Int64[Tensor, "N D"]:
        """`count` independent sequences."""
        u_ND, size = uniform(rng, (count, self.length)), self.num_states
        number_N = sample_categorical(self.first.flatten()[None], u_ND[None, :, 0])[0]
        states = [number_N // size**place % size for place in reversed(range(self.order - 1))]
        for d in range(self.order - 1, self.length):
            states.append(sample_categorical(self.table[tuple(states[d - self.order + 1 :])], u_ND[:, d]))
        return torch.stack(states, 1)

    def log_prob(self, x: Int64[Tensor, "N D"]) -> Float64[Tensor, " N"]:
        """log p(x), in float64."""
        state_DN, width = x.T, self.order
        log_p_N = self.first.log()[tuple(state_DN[: width - 1])]
        for d in range(width - 1, self.length):
            log_p_N = log_p_N + self.table[tuple(state_DN[d - width + 1 : d + 1])].log()
        return log_p_N

    def log_evidence(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, " B"]:
        """The log-probability of what is visible."""
        return torch.cat([self._forward(x_RD, keep=False)[1] for x_RD in x_t.split(self._rows)])

    def marginals_given(self, x_t: Int64[Tensor, "B D"]) -> Float[Tensor, "B D S"]:
        """p(x^d | what is visible) at every position; a visible state is certain."""
        return certain(torch.cat([self._marginals(x_RD) for x_RD in x_t.split(self._rows)]), x_t)

    def pair_marginals(self) -> Float64[Tensor, "P S S"]:
        """p(x^d, x^{d+1})."""
        joint, pairs = self.first, []
        for place in range(self.order - 2):
            others = [axis for axis in range(self.order - 1) if axis not in (place, place + 1)]
            pairs.append(joint.sum(others) if others else joint)
        for _ in range(self.order - 1, self.length):
            both = joint[..., None] * self.table
            pairs.append(both.flatten(0, -3).sum(0) if self.order > 2 else both)
            joint = both.sum(0)
        return torch.stack(pairs)

    # A message holds a number for each of the S^{n-1} strings of states of n - 1 neighbouring positions, and has the sequences last: then
    # every step is one product of matrices for each of the S^{n-2} strings in the middle, and nothing has to be moved. Forward messages
    # have their positions ascending, backward ones descending.

    @property
    def _rows(self) -> int:
        return max(1, min(_ROWS, _CELLS // self.num_states ** (self.order - 1)))

    @cached_property
    def _steps(self) -> tuple[Float[Tensor, "M S S"], Float[Tensor, "M S S"]]:
        """The table for a step forward, (middle, new, old), and backward, (middle descending, old, new)."""
        size, middle = self.num_states, tuple(range(1, self.order - 1))
        last, narrow = self.order - 1, self.table.to(self.precision)
        ahead = narrow.permute(*middle, last, 0).reshape(-1, size, size).contiguous()
        back = narrow.permute(*reversed(middle), 0, last).reshape(-1, size, size).contiguous()
        return ahead, back

    def _seen(self, x_RD: Int64[Tensor, "R D"]) -> Float[Tensor, "D S R"]:
        """Whether each state agrees with what is visible."""
        size = self.num_states
        rows = torch.cat([torch.eye(size, dtype=self.precision), torch.ones(1, size, dtype=self.precision)])
        return rows[x_RD].permute(1, 2, 0).contiguous()

    def _forward(
        self, x_RD: Int64[Tensor, "R D"], *, keep: bool
    ) -> tuple[dict[int, Float[Tensor, "... R"]], Float64[Tensor, " R"]]:
        """Messages p(last n - 1 states | what is visible so far) at every (n-1)-th position and the last, and the evidence."""
        size, span, seen_DSR = self.num_states, self.order - 1, self._seen(x_RD)
        message = self.first.to(self.precision)[..., None].expand(*self.first.shape, len(x_RD))
        for place in range(span):
            message = message * seen_DSR[place].view(size, *[1] * (span - 1 - place), -1)
        kept, log_total_R = {}, torch.zeros(len(x_RD), dtype=torch.float64)
        total_R = torch.ones(len(x_RD), dtype=self.precision)
        for d in range(span - 1, self.length):
            if d >= span:
                old = message.view(size, -1, len(x_RD)).transpose(0, 1)
                message = torch.bmm(self._steps[0], old).mul_(seen_DSR[d] / total_R.clamp_min(_LEAST))
            total_R = message.view(-1, len(x_RD)).sum(0)
            log_total_R += total_R.double().log()
            if keep and ((d + 1) % span == 0 or d + 1 == self.length):
                kept[d] = message.view(*[size] * span, -1)
        return kept, log_total_R

    def _marginals(self, x_RD: Int64[Tensor, "R D"]) -> Float[Tensor, "R D S"]:
        size, span, seen_DSR = self.num_states, self.order - 1, self._seen(x_RD)
        kept, _ = self._forward(x_RD, keep=True)
        p_DSR = torch.zeros_like(seen_DSR)
        message = torch.ones(size**span, len(x_RD), dtype=self.precision)
        for d in reversed(range(span - 1, self.length)):
            if d in kept:
                descending = message.view(*[size] * span, -1)
                both = kept.pop(d) * descending.permute(*reversed(range(span)), span)
                for place in reversed(range(span)):
                    p_DSR[d - span + 1 + place] = both.flatten(0, place - 1).sum(0) if place else both
                    both = both.sum(place)
            scaled_SR = seen_DSR[d] / message.amax(0).clamp_min(_LEAST)
            new = message.view(size, -1, len(x_RD)) * scaled_SR[:, None]
            message = torch.bmm(self._steps[1], new.transpose(0, 1)).view(-1, len(x_RD))
        return (p_DSR / p_DSR.sum(1, keepdim=True).clamp_min(_LEAST)).permute(2, 0, 1)


def states_of(texts: Iterable[str]) -> UInt8[ndarray, " N"]:
    """The characters of all texts, one after the other, as numbers in `ALPHABET`."""
    letter = np.zeros(128, dtype=np.uint8)
    letter[[ord(one) for one in ALPHABET[1:]]] = np.arange(1, len(ALPHABET))
    joined = " ".join(texts).lower().encode("ascii", "replace")
    state_N = letter[np.frombuffer(joined, dtype=np.uint8)]
    is_repeated_N = np.zeros(len(state_N), dtype=bool)
    is_repeated_N[1:] = (state_N[1:] == 0) & (state_N[:-1] == 0)
    return state_N[~is_repeated_N]


def kneser_ney(state_N: UInt8[ndarray, " N"], order: int) -> Float64[ndarray, "..."]:
    """p(x_n | x_1 ... x_{n-1}) for all contexts, by interpolated Kneser-Ney, as `di4c_lm.measure.text.counting.NgramModel` says it.

    At the highest order n-grams count, below it the numbers of different states before them; what the discounts of a context leave goes to
    the order below, and 1/S is below all.
    """
    size, number_N = len(ALPHABET), np.zeros(len(state_N) - order + 1, dtype=np.int64)
    for place in range(order):
        number_N = number_N * size + state_N[place : len(state_N) - order + 1 + place]
    count = np.bincount(number_N, minlength=size**order).reshape([size] * order)
    levels = [count]
    for _ in range(order - 1):
        levels.append((levels[-1] > 0).sum(0))
    p = np.full(1, 1 / size)
    for level in reversed(levels):
        once, twice = int((level == 1).sum()), int((level == 2).sum())
        discount = once / (once + 2 * twice) if once else _DISCOUNT
        total = level.sum(-1, keepdims=True)
        left = np.where(total > 0, discount * (level > 0).sum(-1, keepdims=True), 1.0)
        p = (np.maximum(level - discount, 0.0) + left * p) / np.maximum(total, 1)
    return p
