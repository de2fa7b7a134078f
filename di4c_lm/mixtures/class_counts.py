"""Classes of tokens that stand in like company: what the class of one token tells of the next one's."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_ROUNDS = 20
_PRIOR = 0.5  # added to each pair of classes: what was never seen is rare, not impossible


def token_classes(
    tokens: Int64[Tensor, "N D"], num_states: int, num_classes: int, generator: torch.Generator
) -> tuple[Int64[Tensor, " S"], Float[Tensor, "L L"]]:
    """At most `num_classes` classes that keep much of the mutual information of neighbours (Brown et al. 1992, section 3).

    The most frequent tokens begin as classes of their own, the others with one drawn from `generator`; then all that gain by it move to the
    class under which their neighbours are likeliest, half of them at a time, until none does.

    Returns: the class of each token (-1 for one never seen), and log p(a, b) / p(a) p(b) of classes a, b of neighbours, in nats.
    """
    pairs = _Pairs.counted(tokens, num_states)
    seen_S = pairs.total_S > 0
    class_S = torch.randint(num_classes, (num_states,), generator=generator)
    first_L = pairs.total_S.argsort(descending=True, stable=True)[:num_classes]
    class_S[first_L] = torch.arange(len(first_L))
    for _ in range(_ROUNDS):
        best_S = pairs.best_class(class_S, num_classes)
        moved_S = (best_S != class_S) & seen_S
        if not bool(moved_S.any()):
            break
        half_S = torch.rand(num_states, generator=generator) < 0.5
        class_S = torch.where(moved_S & half_S, best_S, class_S)
    return torch.where(seen_S, class_S, -1), pairs.log_ratio(class_S, num_classes)


def pair_log_ratios(tokens: Int64[Tensor, "N D"], num_states: int) -> Float[Tensor, "S S"]:
    """log p(a, b) / p(a) p(b) of tokens a, b of neighbours, in nats."""
    return _Pairs.counted(tokens, num_states).log_ratio(torch.arange(num_states), num_states)


def class_log_ratios(
    tokens: Int64[Tensor, "N D"], class_S: Int64[Tensor, " S"], num_classes: int, distances: int
) -> Float[Tensor, "K L L"]:
    """log p(a, b) / p(a) p(b) of classes a, b of tokens 1, 2, ... K apart, in nats; 0 where no sequence is so long."""
    num_states = len(class_S)
    return torch.stack(
        [_Pairs.counted(tokens, num_states, apart).log_ratio(class_S, num_classes) for apart in range(1, distances + 1)]
    )


@dataclass(frozen=True)
class _Pairs:
    """How often token `here` stands before token `there`, for the pairs that occur, and how often each token is in a pair."""

    here_N: Int64[Tensor, " N"]
    there_N: Int64[Tensor, " N"]
    count_N: Float[Tensor, " N"]
    total_S: Float[Tensor, " S"]

    @classmethod
    def counted(cls, tokens_ND: Int64[Tensor, "N D"], num_states: int, apart: int = 1) -> "_Pairs":
        pair_N, times_N = (tokens_ND[:, :-apart] * num_states + tokens_ND[:, apart:]).unique(return_counts=True)
        here_N, there_N, count_N = pair_N // num_states, pair_N % num_states, times_N.float()
        total_S = torch.zeros(num_states).index_add_(0, here_N, count_N).index_add_(0, there_N, count_N)
        return cls(here_N, there_N, count_N, total_S)

    def log_ratio(self, class_S: Int64[Tensor, " S"], num_classes: int) -> Float[Tensor, "L L"]:
        """log p(a, b) / p(a) p(b) of the classes of neighbours."""
        cell_N = class_S[self.here_N] * num_classes + class_S[self.there_N]
        count_LL = torch.zeros(num_classes**2).index_add_(0, cell_N, self.count_N).view(num_classes, num_classes)
        expected_LL = count_LL.sum(1, keepdim=True) * count_LL.sum(0, keepdim=True) / count_LL.sum().clamp(min=1)
        return ((count_LL + _PRIOR) / (expected_LL + _PRIOR)).log()

    def best_class(self, class_S: Int64[Tensor, " S"], num_classes: int) -> Int64[Tensor, " S"]:
        """Of each token the class under which the classes of all its neighbours are likeliest."""
        ratio_LL = self.log_ratio(class_S, num_classes)
        score_SL = self._company(self.here_N, class_S[self.there_N], num_classes) @ ratio_LL.T
        score_SL += self._company(self.there_N, class_S[self.here_N], num_classes) @ ratio_LL
        return score_SL.argmax(1)

    def _company(self, token_N: Tensor, class_N: Tensor, num_classes: int) -> Float[Tensor, "S L"]:
        """How often each token has a neighbour of each class, on one side."""
        cell_N = token_N * num_classes + class_N
        num_states = len(self.total_S)
        return torch.zeros(num_states * num_classes).index_add_(0, cell_N, self.count_N).view(num_states, num_classes)
