"""List operations: a list is given and the answer is to be written, with as many right answers as the operation has (after ParallelBench,
arXiv 2510.04767, whose tasks on lists these are in kind).

How far the positions of an answer depend on each other is known in closed form, so that what a sampler of few steps can and cannot say is
known too: nothing stands in the way of copying in one call, and no product of positions shuffles.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import check
from di4c_lm.data.text.hidden_markov import certain
from di4c_lm.processes.rng import Rng, uniform

_LONGEST = 8  # 8! = 40,320 answers are enumerated


def _replaced(length: int, position: int) -> tuple[int, ...]:
    """The list with the new item, `length`, at one position."""
    return tuple(length if place == position else place for place in range(length))


# Of each operation its right answers: which item of the list stands at each position, `length` being the new one. All are equally likely.
OPERATIONS: dict[str, Callable[[int], list[tuple[int, ...]]]] = {
    "copy": lambda length: [tuple(range(length))],
    "replace_one": lambda length: [_replaced(length, 1)],
    "replace_random": lambda length: [_replaced(length, place) for place in range(length)],
    "shuffle": lambda length: list(permutations(range(length))),
    "derange": lambda length: [one for one in permutations(range(length)) if all(a != b for a, b in enumerate(one))],
}


@cache
def _answers(operation: str, length: int) -> Int64[Tensor, "A n"]:
    return torch.tensor(OPERATIONS[operation](length))


@final
@dataclass(frozen=True)
class ListOperations:
    """x = (operation, list, answer): n different items out of `items`, an operation by its own state, and one of its right answers.

    copy: the list; replace_one: a new item in the second place; replace_random: in any one place; shuffle: any order; derange: any order
    in which no item keeps its place. All that is random is uniform. States: the items, the new item, the operations; MASK is S. The
    operation and the list are given (`prompt`), and must be visible wherever something is asked about the answer.
    """

    operations: tuple[str, ...]
    items: int
    list_length: int

    def __post_init__(self) -> None:
        known = ", ".join(OPERATIONS)
        check(len(self.operations) > 0, "source.operations", self.operations, f"some of {known}")
        for one in self.operations:
            check(one in OPERATIONS, "source.operations", one, f"among {known}")
        check(2 <= self.list_length <= _LONGEST, "source.list_length", self.list_length, f"from 2 to {_LONGEST}")
        check(self.items >= self.list_length, "source.items", self.items, f"at least list_length = {self.list_length}")

    @classmethod
    def of(cls, *, operations: list[str], items: int, list_length: int) -> "ListOperations":
        """From plain settings."""
        return cls(tuple(operations), items, list_length)

    @property
    def prompt(self) -> int:
        """The first positions, which are given: the operation and the list."""
        return 1 + self.list_length

    @property
    def length(self) -> int:
        """D."""
        return 1 + 2 * self.list_length

    @property
    def num_states(self) -> int:
        """S."""
        return self.items + 1 + len(self.operations)

    def sample(self, count: int, rng: Rng) -> Int64[Tensor, "N D"]:
        """`count` independent sequences."""
        u_NK = uniform(rng, (count, self.items + 2))
        operation_N = (u_NK[:, -1] * len(self.operations)).long()
        list_Nn = u_NK[:, : self.items].argsort(1)[:, : self.list_length]
        index_Nn = torch.empty_like(list_Nn)
        for number, one in enumerate(self.operations):
            rows_N, answers_An = operation_N == number, _answers(one, self.list_length)
            index_Nn[rows_N] = answers_An[(u_NK[rows_N, -2] * len(answers_An)).long()]
        return torch.cat(
            [self.items + 1 + operation_N[:, None], list_Nn, self._with_new(list_Nn).gather(1, index_Nn)], 1
        )

    def log_prob(self, x: Int64[Tensor, "N D"]) -> Float64[Tensor, " N"]:
        """log p(x) in closed form: -inf for a wrong answer."""
        return self.log_evidence(x)

    def log_evidence(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, " B"]:
        """The log-probability of what is visible. Raises `ValueError` where a part of the prompt is not."""
        log_prompt = -math.log(len(self.operations) * math.perm(self.items, self.list_length))
        log_p_B = torch.full((len(x_t),), -torch.inf, dtype=torch.float64)
        for rows_B, agree_BA, _ in self._agreeing(x_t):
            log_p_B[rows_B] = log_prompt + agree_BA.double().mean(1).log()
        item_Bn = x_t[:, 1 : self.prompt].sort(1).values
        is_list_B = (item_Bn[:, -1] < self.items) & (item_Bn.diff(dim=1) > 0).all(1)
        return log_p_B.masked_fill(~is_list_B, -torch.inf)

    def marginals_given(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, "B D S"]:
        """p(x^d | what is visible) at every position, a visible state certain, by enumeration of the answers.

        Raises `ValueError` where a part of the prompt is not visible.
        """
        size = self.list_length
        p_BDS = torch.zeros(*x_t.shape, self.num_states, dtype=torch.float64)
        for rows_B, agree_BA, answers_An in self._agreeing(x_t):
            share_BA = agree_BA.double() / agree_BA.sum(1, keepdim=True).clamp_min(1)
            index_BnI = (share_BA @ F.one_hot(answers_An, size + 1).double().flatten(1)).view(-1, size, size + 1)
            state_BnI = self._with_new(x_t[rows_B, 1 : self.prompt])[:, None].expand_as(index_BnI)
            answer_BnS = p_BDS.new_zeros(len(state_BnI), size, self.num_states).scatter_add(2, state_BnI, index_BnI)
            p_BDS[rows_B, self.prompt :] = answer_BnS
        return certain(p_BDS, x_t)

    def is_right(self, x: Int64[Tensor, "N D"]) -> Bool[Tensor, " N"]:
        """Whether the answers are right."""
        return self.log_prob(x) > -math.inf

    def operation_of(self, x: Int64[Tensor, "N D"]) -> Int64[Tensor, " N"]:
        """The number of each sequence's operation."""
        return x[:, 0] - self.items - 1

    def _with_new(self, list_Nn: Int64[Tensor, "N n"]) -> Int64[Tensor, "N m"]:
        """Lists, and the new item behind them."""
        return F.pad(list_Nn, (0, 1), value=self.items)

    def _agreeing(self, x_t: Int64[Tensor, "B D"]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each operation the sequences that have it, whether each of its answers agrees with what they show, and the answers."""
        if x_t.numel() and int(x_t[:, : self.prompt].max()) >= self.num_states:
            raise ValueError("x_t must show the operation and the list, got MASK among them")
        found, operation_B = [], self.operation_of(x_t)
        for number, one in enumerate(self.operations):
            rows_B = (operation_B == number).nonzero()[:, 0]
            if not len(rows_B):
                continue
            answers_An, x_BD = _answers(one, self.list_length), x_t[rows_B]
            right_BnI = x_BD[:, self.prompt :, None] == self._with_new(x_BD[:, 1 : self.prompt])[:, None]
            agree_BnI = right_BnI | (x_BD[:, self.prompt :, None] == self.num_states)
            agree_BA = torch.ones(len(rows_B), len(answers_An), dtype=torch.bool)
            for place in range(self.list_length):
                agree_BA &= agree_BnI[:, place][:, answers_An[:, place]]
            found.append((rows_B, agree_BA, answers_An))
        return found


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a product of positions can do at best in one call, of an operation; in nats of an answer, given the list."""

    answers: int
    total_correlation: float  # Σ_d H(x^d | list) - H(x | list): the least KL of a product to the right distribution
    accuracy: float  # of the product of the exact marginals, which attains it


def bound(operation: str, length: int) -> Bound:
    """The bound of an operation on lists of `length` items, in closed form."""
    answers_An = _answers(operation, length)
    p_nI = F.one_hot(answers_An, length + 1).double().mean(0)
    log_product_A = p_nI.log()[torch.arange(length), answers_An].sum(1)
    entropies = float(torch.special.entr(p_nI).sum())
    return Bound(
        answers=len(answers_An),
        total_correlation=max(0.0, entropies - math.log(len(answers_An))),
        accuracy=float(log_product_A.exp().sum()),
    )
