"""Markov chains of classes: pair potentials, and what they make of the marginals that are wanted (Sinkhorn 1964)."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from di4c_lm.mixtures.base import Chain
from di4c_lm.processes.categorical import sample_categorical

_LEAST = 1e-30  # of a probability beside the likeliest; it keeps the logarithm of a path that cannot be finite
_MOST_ITERATIONS = 200  # of Sinkhorn scaling, where a tolerance asks for more than are set


@dataclass(frozen=True)
class PairPotentials:
    """r(a, b) = Σ_k gate_k K_k(a, b) + Σ_q f_q(a) g_q(b), not negative, for pairs of neighbours.

    K_0 is 1 for all pairs of classes: independence. Each pair has f and g of its own, where there are any.
    """

    gate: Float[Tensor, "*pairs K"]
    relation: Float[Tensor, "R L L"]  # K_1 and on: R = K - 1
    left: Float[Tensor, "*pairs Q L"] | None = None  # f
    right: Float[Tensor, "*pairs Q L"] | None = None  # g

    def forward(self, weight: Float[Tensor, "*pairs L"]) -> Float[Tensor, "*pairs L"]:
        """Σ_a weight(a) r(a, b)."""
        return self._mixed(weight, self._by_here, self.left, self.right)

    def backward(self, weight: Float[Tensor, "*pairs L"]) -> Float[Tensor, "*pairs L"]:
        """Σ_b r(a, b) weight(b)."""
        return self._mixed(weight, self._by_there, self.right, self.left)

    def of(self, pair: int) -> "PairPotentials":
        """One pair of each of B sequences, with an axis for several weights: gates (B, 1, K)."""
        one = PairPotentials(self.gate[:, pair, None], self.relation, *self._factors(pair))
        one.__dict__.update(_by_here=self._by_here, _by_there=self._by_there)
        return one

    def cut(self, where: Bool[Tensor, "*pairs"]) -> "PairPotentials":
        """The same, but that the pairs `where` are independent."""
        free_K = torch.eye(self.gate.shape[-1], device=self.gate.device, dtype=self.gate.dtype)[0]
        gate = torch.where(where[..., None], free_K, self.gate)
        left = None if self.left is None else self.left.masked_fill(where[..., None, None], 0.0)
        return PairPotentials(gate, self.relation, left, self.right)

    def for_several(self) -> "PairPotentials":
        """The same with an axis for several weights a pair: gates (B, P, 1, K)."""
        factors = (None if factor is None else factor[:, :, None] for factor in (self.left, self.right))
        return PairPotentials(self.gate[:, :, None], self.relation, *factors)

    def rows(self, pair: int, code: Int64[Tensor, "B N"]) -> Float[Tensor, "B N L"]:
        """r(code, ·) of one pair of each of B sequences."""
        gate_BK = self.gate[:, pair]
        row_BNL = torch.einsum("bk,kbnl->bnl", gate_BK[:, 1:], self.relation[:, code]) + gate_BK[:, :1, None]
        if self.left is None or self.right is None:
            return row_BNL
        left_BQL = self.left[:, pair]
        left_BQN = left_BQL.gather(2, code[:, None].expand(-1, left_BQL.shape[1], -1))
        return row_BNL + left_BQN.mT @ self.right[:, pair]

    @cached_property
    def _by_here(self) -> Float[Tensor, "RL L"]:
        return self.relation.flatten(0, 1)

    @cached_property
    def _by_there(self) -> Float[Tensor, "RL L"]:
        return self.relation.transpose(1, 2).flatten(0, 1)

    def _factors(self, pair: int) -> tuple[Tensor | None, Tensor | None]:
        left, right = (None if factor is None else factor[:, pair, None] for factor in (self.left, self.right))
        return left, right

    def _mixed(
        self, weight: Tensor, stacked: Float[Tensor, "RL L"], read: Tensor | None, write: Tensor | None
    ) -> Float[Tensor, "*pairs L"]:
        """All relations in one product, and what is of low rank by way of Q numbers."""
        free = self.gate[..., :1] * weight.sum(-1, keepdim=True)
        mixed = free + (self.gate[..., 1:, None] * weight[..., None, :]).flatten(-2) @ stacked
        if read is None or write is None:
            return mixed
        return mixed + ((read @ weight[..., None]).mT @ write).squeeze(-2)


@dataclass(frozen=True)
class ClassChain(Chain):
    """p(z_1) Π_i p(z_{i+1} | z_i) for classes z_i < L of the unknown positions, `place[b, i]` for i below sequence b's number of them.

    p(z_{i+1} = b | z_i = a) = u_i(a) r_i(a, b) out_i(b), with u_i the normaliser of each a and out_i the distribution wanted of z_{i+1}, as
    far as the fit went. A known position has no class; it is given number 0.
    """

    first: Float[Tensor, "B L"]  # p(z_1)
    potentials: PairPotentials  # of N - 1 pairs a sequence
    normaliser: Float[Tensor, "B P L"]  # u_i, P = N - 1
    out: Float[Tensor, "B P L"]
    place: Int64[Tensor, "B N"]
    is_unknown: Bool[Tensor, "B N"]
    num_positions: int  # D

    @classmethod
    def fitted(
        cls,
        marginal: Float[Tensor, "B N L"],
        potentials: PairPotentials,
        place: Int64[Tensor, "B N"],
        is_unknown: Bool[Tensor, "B N"],
        *,
        num_positions: int,
        iterations: int,
        tolerance: float = 0.0,
    ) -> "ClassChain":
        """The chain of these potentials with these marginals, by Sinkhorn iterations (Sinkhorn 1964), differentiable.

        Every row is a distribution whatever their number; the marginals converge with it, and are exact under independence. With
        `tolerance` it begins from where no position's marginal is further from its own than that, in total variation; the
        gradient is that of the last `iterations` alone.
        """
        here, there = marginal[:, :-1], marginal[:, 1:]
        column = torch.ones_like(there)
        if tolerance:
            column = _scaled(here, there, potentials, is_unknown, tolerance)
        for _ in range(iterations):
            row = potentials.backward(column * there).reciprocal()
            column = potentials.forward(row * here).reciprocal()
        out = column * there
        normaliser = potentials.backward(out).reciprocal()
        return cls(marginal[:, 0], potentials, normaliser, out, place, is_unknown, num_positions)

    @classmethod
    def multiplied(
        cls,
        marginal: Float[Tensor, "B N L"],
        potentials: PairPotentials,
        place: Int64[Tensor, "B N"],
        is_unknown: Bool[Tensor, "B N"],
        *,
        num_positions: int,
    ) -> "ClassChain":
        """p(z) ∝ Π_i p^i(z_i) Π_i r_i(z_i, z_{i+1}), a product of experts: what follows is summed out from the end, scaled on the way.

        Its marginals are not those given. Reference: CoDD (arXiv 2603.00045), whose hidden Markov model multiplies a teacher's product.
        """
        after_BL = torch.ones_like(marginal[:, 0])
        outs, normalisers = [], []
        for i in reversed(range(marginal.shape[1] - 1)):
            out_BL = marginal[:, i + 1] * after_BL
            back_BL = potentials.of(i).backward(out_BL[:, None])[:, 0]
            outs.append(out_BL)
            normalisers.append(back_BL.reciprocal())
            after_BL = torch.where(is_unknown[:, i + 1, None], back_BL / back_BL.amax(1, keepdim=True), 1.0)
        first_BL = marginal[:, 0] * after_BL
        first_BL = first_BL / first_BL.sum(1, keepdim=True)
        none = marginal[:, 1:]  # of one position, which has no pair
        out, normaliser = (torch.stack(parts[::-1], 1) if parts else none for parts in (outs, normalisers))
        return cls(first_BL, potentials, normaliser, out, place, is_unknown, num_positions)

    @property
    def num_windows(self) -> int:
        """D: each position is a window of its own."""
        return self.num_positions

    def window_of(self, position: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """See `Chain.window_of`: the position itself."""
        return position

    @property
    def num_links(self) -> int:
        """See `Chain.num_links`: the unknown positions."""
        return self.place.shape[1]

    def window_at(self, link: int) -> Int64[Tensor, " B"]:
        """See `Chain.window_at`."""
        return self.place[:, link].masked_fill(~self.is_unknown[:, link], -1)

    def moved(self, weight: Float[Tensor, "B L"] | None, link: int) -> Float[Tensor, "B L"]:
        """See `Chain.moved`."""
        return self.first if weight is None else self._step(link - 1, weight[:, None])[:, 0]

    @cached_property
    def log_marginal(self) -> Float[Tensor, "B D L"]:
        """See `Chain.log_marginal`: one step a position; uniform where a position is known."""
        p_BL = self.first
        marginals = [p_BL]
        for i in range(self.out.shape[1]):
            p_BL = self._step(i, p_BL[:, None])[:, 0]
            marginals.append(p_BL)
        p_BNL = torch.stack(marginals, 1)
        num_codes = p_BNL.shape[2]
        uniform_BDL = p_BNL.new_full((len(p_BNL), self.num_positions, num_codes), 1 / num_codes)
        at_BNL = self.place[..., None].expand_as(p_BNL)
        kept_BNL = torch.where(self.is_unknown[..., None], p_BNL, 1 / num_codes)
        return uniform_BDL.scatter(1, at_BNL, kept_BNL).clamp(min=torch.finfo(p_BNL.dtype).tiny).log()

    def log_prob(self, log_emission: Float64[Tensor, "B D T L"]) -> Float64[Tensor, "B T"]:
        """See `Chain.log_prob`, over the unknown positions.

        The forward recursion is in the dtype of the chain, scaled at every position; the sum of the logarithms is in float64. The sum over
        all z is linear in each factor, so its gradient (of the first order) is that of each factor by itself between what the recursions
        from both ends have made of the others, all positions at once.
        """
        at_BN11 = self.place[..., None, None].expand(-1, -1, *log_emission.shape[2:])
        log_e_BNTL = log_emission.gather(1, at_BN11).masked_fill(~self.is_unknown[..., None, None], 0.0)
        top_BNT1 = log_e_BNTL.amax(3, keepdim=True).detach()
        e_BNTL = (log_e_BNTL - top_BNT1).exp().to(self.first.dtype)
        before, after, total_BNT1 = self._recursions(e_BNTL.detach())
        log_total_BT = (total_BNT1.double().log() + top_BNT1).sum((1, 3))
        if not torch.is_grad_enabled():
            return log_total_BT
        e_BNTL = e_BNTL / total_BNT1
        of_first_BT = (self.first[:, None] * e_BNTL[:, 0] * after[:, 0]).sum(2)
        moved_BPTL = (
            self.potentials.for_several().forward(before[:, :-1] * self.normaliser[:, :, None]) * self.out[:, :, None]
        )
        of_pair_BPT = (moved_BPTL * e_BNTL[:, 1:] * after[:, 1:]).sum(3).masked_fill(~self.is_unknown[:, 1:, None], 0.0)
        parts_BT = of_first_BT + of_pair_BPT.sum(1)
        return log_total_BT + (parts_BT - parts_BT.detach())

    @torch.no_grad()
    def _recursions(
        self, e_BNTL: Float[Tensor, "B N T L"]
    ) -> tuple[Float[Tensor, "B N T L"], Float[Tensor, "B N T L"], Float[Tensor, "B N T 1"]]:
        """p(z_i | what is observed up to i), what follows i relative to its mean under that, and each step's scale."""
        num_unknown = e_BNTL.shape[1]
        weight_BTL = self.first[:, None] * e_BNTL[:, 0]
        before, totals = [], []
        for i in range(num_unknown):
            if i:
                weight_BTL = self._step(i - 1, before[-1]) * e_BNTL[:, i]
            totals.append(weight_BTL.sum(2, keepdim=True).clamp(min=_LEAST))
            before.append(weight_BTL / totals[-1])
        after = [torch.ones_like(weight_BTL)]
        for i in reversed(range(num_unknown - 1)):
            seen_BTL = self.out[:, i, None] * e_BNTL[:, i + 1] * after[-1] / totals[i + 1]
            back_BTL = self.normaliser[:, i, None] * self.potentials.of(i).backward(seen_BTL)
            after.append(torch.where(self.is_unknown[:, i + 1, None, None], back_BTL, after[-1]))
        return torch.stack(before, 1), torch.stack(after[::-1], 1), torch.stack(totals, 1)

    @torch.no_grad()
    def sample(self, u: Float64[Tensor, "B N D"]) -> Int64[Tensor, "B N D"]:
        """See `Chain.sample`; each class by the uniform of its position."""
        at_BNP = self.place[:, None].expand(-1, u.shape[1], -1)
        u_BNP = u.gather(2, at_BNP)
        codes = [sample_categorical(self.first, u_BNP[:, :, 0])]
        for i in range(self.out.shape[1]):
            p_BNL = self.potentials.rows(i, codes[-1]) * self.out[:, i, None]
            code_N = sample_categorical(p_BNL.flatten(0, 1), u_BNP[:, :, i + 1].flatten())
            codes.append(code_N.view(u.shape[:2]))
        code_BNP = torch.stack(codes, 2).masked_fill(~self.is_unknown[:, None], 0)
        return torch.zeros_like(u, dtype=torch.int64).scatter(2, at_BNP, code_BNP)

    def _step(self, pair: int, weight: Float[Tensor, "B T L"]) -> Float[Tensor, "B T L"]:
        """Σ_a weight(a) p(b | a) from one unknown position to the next; unchanged where there is no next."""
        moved_BTL = self.potentials.of(pair).forward(weight * self.normaliser[:, pair, None]) * self.out[:, pair, None]
        return torch.where(self.is_unknown[:, pair + 1, None, None], moved_BTL, weight)


@dataclass(frozen=True)
class EitherChain(Chain):
    """½ p_1(z) + ½ p_2(z) for two chains over the same positions, such as along rows and along columns of an image.

    Which one a sample of z is of is said by the uniform of a last window, which holds no position. A walk goes along the first.
    """

    chains: tuple[ClassChain, ClassChain]

    @property
    def num_windows(self) -> int:
        """D + 1."""
        return self.chains[0].num_windows + 1

    def window_of(self, position: Int64[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """See `Chain.window_of`: the position itself."""
        return position

    @property
    def num_links(self) -> int:
        """See `Chain.num_links`: of the first."""
        return self.chains[0].num_links

    def window_at(self, link: int) -> Int64[Tensor, " B"]:
        """See `Chain.window_at`."""
        return self.chains[0].window_at(link)

    def moved(self, weight: Float[Tensor, "B L"] | None, link: int) -> Float[Tensor, "B L"]:
        """See `Chain.moved`."""
        return self.chains[0].moved(weight, link)

    @cached_property
    def log_marginal(self) -> Float[Tensor, "B W L"]:
        """See `Chain.log_marginal`; uniform in the last window."""
        both_BDL = torch.logaddexp(*(chain.log_marginal for chain in self.chains)) - math.log(2)
        return F.pad(both_BDL, (0, 0, 0, 1), value=-math.log(both_BDL.shape[2]))

    def log_prob(self, log_emission: Float64[Tensor, "B W T L"]) -> Float64[Tensor, "B T"]:
        """See `Chain.log_prob`."""
        return torch.logaddexp(*(chain.log_prob(log_emission[:, :-1]) for chain in self.chains)) - math.log(2)

    @torch.no_grad()
    def sample(self, u: Float64[Tensor, "B N W"]) -> Int64[Tensor, "B N W"]:
        """See `Chain.sample`."""
        u_BND, is_first_BN1 = u[..., :-1], u[..., -1:] < 0.5
        code_BND = torch.where(is_first_BN1, *(chain.sample(u_BND) for chain in self.chains))
        return F.pad(code_BND, (0, 1))


@torch.no_grad()
def _scaled(
    here: Float[Tensor, "B P L"],
    there: Float[Tensor, "B P L"],
    potentials: PairPotentials,
    is_unknown: Bool[Tensor, "B N"],
    tolerance: float,
) -> Float[Tensor, "B P L"]:
    """The columns' scales after as many Sinkhorn iterations as it takes, at most `_MOST_ITERATIONS`.

    A pair's error, the total variation of what it makes of p(z_i) from p(z_{i+1}), never grows along the chain, so that no marginal
    is further off than the sum of the errors before it; the sum of each sequence is held to the tolerance.
    """
    column = torch.ones_like(there)
    for _ in range(_MOST_ITERATIONS):
        row = potentials.backward(column * there).reciprocal()
        next_column = potentials.forward(row * here).reciprocal()
        off_BP = (there * (column / next_column - 1)).abs().sum(2) / 2
        column = next_column
        if float(off_BP.masked_fill(~is_unknown[:, 1:], 0.0).sum(1).amax()) <= tolerance:
            break
    return column
