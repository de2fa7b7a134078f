"""The law of a λ that is a string of token classes at the open positions: a Markov chain whose marginals are given.

The classes of neighbouring open positions are tied by a copula: whatever ties them, each has (nearly) the law that the product of
positions gives it, so that learning correlations does not disturb the marginals.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical

_LEAST = 1e-30  # below it, beside the likeliest, a path is lost; it keeps the logarithm of a path that cannot be finite


@dataclass(frozen=True)
class Ties:
    """r(a, b) = Σ_k gate_k K_k(a, b), not negative, for pairs of neighbours; K_0 is 1 for all pairs of classes, a tie that is none."""

    gate: Float[Tensor, "*pairs K"]
    relation: Float[Tensor, "R L L"]  # K_1 and on: R = K - 1

    def forward(self, weight: Float[Tensor, "*pairs L"]) -> Float[Tensor, "*pairs L"]:
        """Σ_a weight(a) r(a, b)."""
        return self._mixed(weight, self._by_here)

    def backward(self, weight: Float[Tensor, "*pairs L"]) -> Float[Tensor, "*pairs L"]:
        """Σ_b r(a, b) weight(b)."""
        return self._mixed(weight, self._by_there)

    def of(self, pair: int) -> "Ties":
        """One pair of each of B sequences, with an axis for several weights: gates (B, 1, K)."""
        one = Ties(self.gate[:, pair, None], self.relation)
        one.__dict__.update(_by_here=self._by_here, _by_there=self._by_there)
        return one

    def rows(self, pair: int, code: Int64[Tensor, "B N"]) -> Float[Tensor, "B N L"]:
        """r(code, ·) of one pair of each of B sequences."""
        gate_BK = self.gate[:, pair]
        tied_BNL = torch.einsum("bk,kbnl->bnl", gate_BK[:, 1:], self.relation[:, code])
        return tied_BNL + gate_BK[:, :1, None]

    @cached_property
    def _by_here(self) -> Float[Tensor, "RL L"]:
        return self.relation.flatten(0, 1)

    @cached_property
    def _by_there(self) -> Float[Tensor, "RL L"]:
        return self.relation.transpose(1, 2).flatten(0, 1)

    def _mixed(self, weight: Tensor, stacked: Float[Tensor, "RL L"]) -> Float[Tensor, "*pairs L"]:
        """All relations in one product."""
        free = self.gate[..., :1] * weight.sum(-1, keepdim=True)
        return free + (self.gate[..., 1:, None] * weight[..., None, :]).flatten(-2) @ stacked


@dataclass(frozen=True)
class ClassChain:
    """p(z_1) Π_i p(z_{i+1} | z_i) for classes z_i < L of the open positions, `place[b, i]` for i below sequence b's number of them.

    p(z_{i+1} = b | z_i = a) = u_i(a) r_i(a, b) out_i(b), with u_i the normaliser of each a and out_i the law wanted of z_{i+1}, as far as
    the fitting went. A closed position has no class; it is given number 0.
    """

    first: Float[Tensor, "B L"]  # p(z_1)
    ties: Ties  # of N - 1 pairs a sequence
    normaliser: Float[Tensor, "B P L"]  # u_i, P = N - 1
    out: Float[Tensor, "B P L"]
    place: Int64[Tensor, "B N"]
    is_open: Bool[Tensor, "B N"]
    num_windows: int  # D: each position is a window of its own

    @classmethod
    def fitted(
        cls,
        law: Float[Tensor, "B N L"],
        ties: Ties,
        place: Int64[Tensor, "B N"],
        is_open: Bool[Tensor, "B N"],
        *,
        num_positions: int,
        sweeps: int,
    ) -> "ClassChain":
        """The chain on `ties` with the marginals `law`, by `sweeps` rounds of Sinkhorn's scaling (Sinkhorn 1964), differentiable.

        Every row is a law whatever the number of sweeps; the marginals converge with it, and are `law` where ties are none.
        """
        here, there = law[:, :-1], law[:, 1:]
        column = torch.ones_like(there)
        for _ in range(sweeps):
            row = ties.backward(column * there).reciprocal()
            column = ties.forward(row * here).reciprocal()
        out = column * there
        return cls(law[:, 0], ties, ties.backward(out).reciprocal(), out, place, is_open, num_positions)

    def window_of(self, position: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """The window that holds a position: itself."""
        return position

    @cached_property
    def log_marginal(self) -> Float[Tensor, "B D L"]:
        """log p(z_d = j), computed once, one step a position; uniform where a position is closed."""
        law_BL = self.first
        laws = [law_BL]
        for i in range(self.out.shape[1]):
            law_BL = self._step(i, law_BL[:, None])[:, 0]
            laws.append(law_BL)
        law_BNL = torch.stack(laws, 1)
        num_codes = law_BNL.shape[2]
        uniform_BDL = law_BNL.new_full((len(law_BNL), self.num_windows, num_codes), 1 / num_codes)
        at_BNL = self.place[..., None].expand_as(law_BNL)
        kept_BNL = torch.where(self.is_open[..., None], law_BNL, 1 / num_codes)
        return uniform_BDL.scatter(1, at_BNL, kept_BNL).clamp(min=torch.finfo(law_BNL.dtype).tiny).log()

    def log_prob(self, log_emission: Float64[Tensor, "B D T L"]) -> Float64[Tensor, "B T"]:
        """log Σ_z p(z) Π_d e_d(z_d) over the open positions, for each of T observations.

        The forward recursion is in the dtype of the chain, scaled at every position; the sum of the logarithms is in float64. The sum over
        strings is linear in each factor, so its gradient (of the first order) is that of each factor by itself between what the
        recursions from both ends have made of the others, all positions at once.
        """
        at_BN11 = self.place[..., None, None].expand(-1, -1, *log_emission.shape[2:])
        log_e_BNTL = log_emission.gather(1, at_BN11).masked_fill(~self.is_open[..., None, None], 0.0)
        top_BNT1 = log_e_BNTL.amax(3, keepdim=True).detach()
        e_BNTL = (log_e_BNTL - top_BNT1).exp().to(self.first.dtype)
        before, after, total_BNT1 = self._recursions(e_BNTL.detach())
        log_total_BT = (total_BNT1.double().log() + top_BNT1).sum((1, 3))
        if not torch.is_grad_enabled():
            return log_total_BT
        e_BNTL = e_BNTL / total_BNT1
        of_first_BT = (self.first[:, None] * e_BNTL[:, 0] * after[:, 0]).sum(2)
        ties = Ties(self.ties.gate[:, :, None], self.ties.relation)
        moved_BPTL = ties.forward(before[:, :-1] * self.normaliser[:, :, None]) * self.out[:, :, None]
        of_pair_BPT = (moved_BPTL * e_BNTL[:, 1:] * after[:, 1:]).sum(3).masked_fill(~self.is_open[:, 1:, None], 0.0)
        parts_BT = of_first_BT + of_pair_BPT.sum(1)
        return log_total_BT + (parts_BT - parts_BT.detach())

    @torch.no_grad()
    def _recursions(
        self, e_BNTL: Float[Tensor, "B N T L"]
    ) -> tuple[Float[Tensor, "B N T L"], Float[Tensor, "B N T L"], Float[Tensor, "B N T 1"]]:
        """The law of z_i given what is observed up to i, what follows i relative to its mean under that law, and each step's scale."""
        num_open = e_BNTL.shape[1]
        weight_BTL = self.first[:, None] * e_BNTL[:, 0]
        before, totals = [], []
        for i in range(num_open):
            if i:
                weight_BTL = self._step(i - 1, before[-1]) * e_BNTL[:, i]
            totals.append(weight_BTL.sum(2, keepdim=True).clamp(min=_LEAST))
            before.append(weight_BTL / totals[-1])
        after = [torch.ones_like(weight_BTL)]
        for i in reversed(range(num_open - 1)):
            told_BTL = self.out[:, i, None] * e_BNTL[:, i + 1] * after[-1] / totals[i + 1]
            back_BTL = self.normaliser[:, i, None] * self.ties.of(i).backward(told_BTL)
            after.append(torch.where(self.is_open[:, i + 1, None, None], back_BTL, after[-1]))
        return torch.stack(before, 1), torch.stack(after[::-1], 1), torch.stack(totals, 1)

    @torch.no_grad()
    def sample(self, u: Float64[Tensor, "B N D"]) -> Int64[Tensor, "B N D"]:
        """N strings of classes a sequence, each class by the inverse distribution function of the uniform of its position."""
        at_BNP = self.place[:, None].expand(-1, u.shape[1], -1)
        u_BNP = u.gather(2, at_BNP)
        codes = [sample_categorical(self.first, u_BNP[:, :, 0])]
        for i in range(self.out.shape[1]):
            law_BNL = self.ties.rows(i, codes[-1]) * self.out[:, i, None]
            drawn_N = sample_categorical(law_BNL.flatten(0, 1), u_BNP[:, :, i + 1].flatten())
            codes.append(drawn_N.view(u.shape[:2]))
        code_BNP = torch.stack(codes, 2).masked_fill(~self.is_open[:, None], 0)
        return torch.zeros_like(u, dtype=torch.int64).scatter(2, at_BNP, code_BNP)

    def rows(self, index: Int64[Tensor, " N"]) -> "ClassChain":
        """The chains of some sequences."""
        return replace(
            self,
            first=self.first[index],
            ties=Ties(self.ties.gate[index], self.ties.relation),
            normaliser=self.normaliser[index],
            out=self.out[index],
            place=self.place[index],
            is_open=self.is_open[index],
        )

    def _step(self, pair: int, weight: Float[Tensor, "B T L"]) -> Float[Tensor, "B T L"]:
        """Σ_a weight(a) p(b | a) from one open position to the next; unchanged where there is no next."""
        moved_BTL = self.ties.of(pair).forward(weight * self.normaliser[:, pair, None]) * self.out[:, pair, None]
        return torch.where(self.is_open[:, pair + 1, None, None], moved_BTL, weight)
