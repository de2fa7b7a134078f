"""Hidden Markov models: distributions of sequences whose posterior marginals given any visible positions are exact (Rabiner 1989)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from di4c_lm.core.settings import check
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.rng import Rng, normal, uniform

_LEAST = 1e-300  # of the evidence; what is visible and impossible has it


@final
@dataclass(frozen=True)
class HiddenMarkov:
    """p(x) = Σ_z p(z^1) Π_d p(z^{d+1} | z^d) p(x^d | z^d) for N hidden states z and S states x; MASK, where something is hidden, is S."""

    initial_N: Float64[Tensor, " N"]
    transition_NN: Float64[Tensor, "N N"]
    emission_NS: Float64[Tensor, "N S"]
    length: int

    def __post_init__(self) -> None:
        check_length(self.length)
        check_distributions("initial_N", self.initial_N[None])
        check_distributions("transition_NN", self.transition_NN)
        check_distributions("emission_NS", self.emission_NS)

    @classmethod
    def random(
        cls, num_hidden: int, num_states: int, length: int, *, sharpness: int | float, seed: int
    ) -> "HiddenMarkov":
        """All distributions softmax(sharpness · N(0, 1)), the first hidden state uniform."""
        rng = torch.Generator().manual_seed(seed)
        transition_NN = (sharpness * normal(rng, (num_hidden, num_hidden))).softmax(1)
        emission_NS = (sharpness * normal(rng, (num_hidden, num_states))).softmax(1)
        initial_N = torch.full((num_hidden,), 1 / num_hidden, dtype=torch.float64)
        return cls(initial_N, transition_NN, emission_NS, length)

    @property
    def num_states(self) -> int:
        """S."""
        return self.emission_NS.shape[1]

    def sample(self, count: int, rng: Rng) -> Int64[Tensor, "N D"]:
        """`count` independent sequences."""
        u_ND2 = uniform(rng, (count, self.length, 2))
        hidden_N = sample_categorical(self.initial_N.expand(count, -1), u_ND2[:, 0, 0])
        states = []
        for d in range(self.length):
            if d:
                hidden_N = sample_categorical(self.transition_NN[hidden_N], u_ND2[:, d, 0])
            states.append(sample_categorical(self.emission_NS[hidden_N], u_ND2[:, d, 1]))
        return torch.stack(states, 1)

    def log_prob(self, x: Int64[Tensor, "N D"]) -> Float64[Tensor, " N"]:
        """log p(x), by the forward recursion."""
        return self.log_evidence(x)

    def log_evidence(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, " B"]:
        """The log-probability of what is visible."""
        return self._forward(self._seen(x_t))[1]

    def marginals_given(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, "B D S"]:
        """p(x^d | what is visible) at every position, by forward–backward; a visible state is certain."""
        seen_BDN = self._seen(x_t)
        forward, _ = self._forward(seen_BDN)
        after_BN, rows = torch.ones_like(seen_BDN[:, 0]), []
        for d in reversed(range(self.length)):
            hidden_BN = forward[d] * after_BN
            rows.append((hidden_BN / hidden_BN.sum(1, keepdim=True).clamp_min(_LEAST)) @ self.emission_NS)
            after_BN = (after_BN * seen_BDN[:, d]) @ self.transition_NN.T
            after_BN = after_BN / after_BN.amax(1, keepdim=True).clamp_min(_LEAST)
        return certain(torch.stack(rows[::-1], 1), x_t)

    def pair_marginals(self) -> Float64[Tensor, "P S S"]:
        """p(x^d, x^{d+1})."""
        hidden_N, pairs = self.initial_N, []
        for _ in range(self.length - 1):
            joint_NN = hidden_N[:, None] * self.transition_NN
            pairs.append(self.emission_NS.T @ joint_NN @ self.emission_NS)
            hidden_N = joint_NN.sum(0)
        return torch.stack(pairs)

    def _seen(self, x_t: Int64[Tensor, "B D"]) -> Float64[Tensor, "B D N"]:
        """The probability of what is visible at each position under each hidden state; 1 where nothing is."""
        hidden_N1 = torch.ones(len(self.initial_N), 1, dtype=torch.float64)
        return torch.cat([self.emission_NS, hidden_N1], 1).T[x_t]

    def _forward(self, seen_BDN: Float64[Tensor, "B D N"]) -> tuple[Sequence[Tensor], Float64[Tensor, " B"]]:
        """Of each position p(z^d | what is visible up to it), and the log-probability of all that is visible."""
        before_BN, found = self.initial_N.expand(len(seen_BDN), -1), []
        log_total_B = torch.zeros(len(seen_BDN), dtype=torch.float64)
        for d in range(self.length):
            weight_BN = before_BN * seen_BDN[:, d]
            total_B1 = weight_BN.sum(1, keepdim=True)
            log_total_B = log_total_B + total_B1[:, 0].log()
            found.append(weight_BN / total_B1.clamp_min(_LEAST))
            before_BN = found[-1] @ self.transition_NN
        return found, log_total_B


def certain(p_BDS: Tensor, x_t: Int64[Tensor, "B D"]) -> Tensor:
    """The distributions at each position, a visible state made certain."""
    visible_BD: Bool[Tensor, "B D"] = x_t < p_BDS.shape[2]
    one_BDS = torch.nn.functional.one_hot(torch.where(visible_BD, x_t, 0), p_BDS.shape[2]).to(p_BDS.dtype)
    return torch.where(visible_BD[..., None], one_BDS, p_BDS)


def check_length(length: int) -> None:
    """Raise `ValueError` for a sequence without a pair of neighbours."""
    check(length >= 2, "length", length, "at least 2")


def check_distributions(name: str, p_NS: Float64[Tensor, "N S"]) -> None:
    """Raise `ValueError` for rows that are no distributions."""
    if bool((p_NS < 0).any()) or bool(((p_NS.sum(1) - 1).abs() > 1e-9).any()):
        raise ValueError(f"{name} must hold probabilities that sum to 1, got sums {p_NS.sum(1).tolist()}")
