"""λ as classes of the unknown tokens, one a position, in a chain: a class-based copula over the marginals of a network.

With p^d the product that the network predicts by itself, c(z | x) the classes of token x and p^d(z) = Σ_x p^d(x) c(z | x):

    p(x | x_t; z) = Π_d p^d(x^d) c(z^d | x^d) / p^d(z^d),    p(z | x_t) a Markov chain with marginals p^d(z)

so the marginals stay those of the network, and all that is learned is how tokens go together: the class pairs of a class-based n-gram
model (Brown et al. 1992) as a copula, gated by what the network knows of both positions. The chain is fitted to its marginals by Sinkhorn
iterations, so that whatever the pair potentials are, they are (nearly) kept.

The chain goes through all unknown positions, whose classes take the output head at each of them (`positions=masked`), or through those
alone that a step reveals, or that a likelihood asks for (`revealed`): then the head is run once a token in all. That is another
distribution with the same marginals: positions that are further apart are tied by the gates, which know their distance.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from di4c_lm.core.settings import at_least, check, positive, section, setting
from di4c_lm.losses.reading import PositionReading, Reading
from di4c_lm.mixtures.base import Chain, Chained, CodedMixture, Latents, MixtureSettings, Sequences
from di4c_lm.mixtures.class_counts import class_log_ratios, token_classes
from di4c_lm.networks.base import Network, Rows
from di4c_lm.networks.dit import UniformHead
from di4c_lm.processes.categorical import kl_divergence, sample_categorical
from di4c_lm.processes.denoiser import LinearHead, OutputHead, Positions, Prediction, Walk, rows_at_once, widest

_LEAST = 1e-30  # of a probability beside the likeliest; it keeps the logarithm of a path that cannot be finite
_DISTANCES = 8  # between neighbours that are told apart; the last stands for all that are longer
_MOST_ITERATIONS = 200  # of Sinkhorn scaling, where a tolerance asks for more than are set
_WIDTH = 8  # numbers by which the features decide a term of the potentials of low rank
_SPREAD = 0.5  # standard deviation of what those begin as


@section
class ClassChainSettings(MixtureSettings):
    """One class per masked position, tied in a Markov chain: a class-based copula over the network's marginals."""

    codebook_size: int = setting(512, "number of classes")
    relations: int = setting(
        1, "pair potentials between neighbouring classes, mixed with independence by weights that x_t decides"
    )
    counted: Literal["neighbours", "distances"] = setting(
        "neighbours",
        "pairs whose log-ratios the potentials begin with: of neighbours, whole and halved, or of tokens 1, 2, 3, ... apart",
    )
    rank: int = setting(
        0,
        "terms of a further pair potential, made of the features of both positions; 0: that x_t decides weights alone",
    )
    sharpness: float = setting(4.0, "log-odds with which a token begins in its class, against all others together")
    order: Literal["rows", "columns", "turns"] = setting(
        "rows", "of pixels: the chain goes along rows, along columns, or by one bit of λ along either"
    )
    combine: Literal["copula", "product_of_experts"] = setting(
        "copula",
        "copula: the teacher's marginals are kept; product_of_experts: they are multiplied by the pair potentials, and not kept",
    )
    sinkhorn_iterations: int = setting(2, "Sinkhorn iterations that fit the chain to the teacher's marginals")
    sinkhorn_tolerance: float = setting(
        0.0,
        "total variation from the teacher's marginal that no position may exceed: more iterations are made where needed; 0: no more",
    )
    init_scale: float = setting(
        0.02, "standard deviation of the initial weights; what is counted from the data begins as counted"
    )
    positions: Literal["masked", "revealed"] = setting(
        "masked", "that the chain goes through: all that are masked, or those alone that a step reveals, for less"
    )
    matmul_dtype: Literal["same", "bfloat16"] = setting(
        "same", "type of the products that say the distribution of each position's class, in sampling alone"
    )
    freeze_backbone: bool = setting(True, "keep the teacher's weights and train λ's alone")

    reads_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, 1, "codebook_size", "relations", "sinkhorn_iterations")
        at_least(self, 0, "rank", "sinkhorn_tolerance")
        positive(self, "init_scale", "sharpness")
        free = self.combine == "copula" or not self.sinkhorn_tolerance
        check(
            free,
            "sinkhorn_tolerance",
            self.sinkhorn_tolerance,
            "0 where combine=product_of_experts, which fits nothing",
        )
        keeps = self.combine == "copula" or self.positions == "masked"
        check(keeps, "positions", self.positions, "masked where combine=product_of_experts, which keeps no marginals")

    @property
    def has_marginals(self) -> bool:
        """See `MixtureSettings`: of a chain through what a step reveals an objective knows none before the step."""
        return self.positions == "masked"

    def wrap(self, network: Network) -> "ClassChainMixture":
        """See `MixtureSettings.wrap`."""
        has_rows = self.order == "rows" or network.image_shape is not None
        check(has_rows, "mixture.order", self.order, "rows over a network whose positions are no pixels")
        return ClassChainMixture(self, network)


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


@dataclass(frozen=True)
class ClassTable:
    """log c(z | x), and what is made of it for predictions without gradient."""

    log_p: Float[Tensor, "S L"]

    @cached_property
    def p(self) -> Float[Tensor, "S L"]:
        """c(z | x)."""
        return self.log_p.exp()

    @cached_property
    def narrow_p(self) -> Float[Tensor, "S L"]:
        """c(z | x) in bfloat16."""
        return self.p.bfloat16()

    @cached_property
    def by_class(self) -> Float[Tensor, "L S"]:
        """log c(z | x), the states of a class side by side."""
        return self.log_p.T.contiguous()


@final
@dataclass(frozen=True)
class ChosenClassHead(OutputHead):
    """`inner` under one class a position: p(x | z) up to its normaliser. The last of the features is the number of the class."""

    inner: OutputHead
    table: ClassTable

    @property
    def num_states(self) -> int:
        """S."""
        return self.inner.num_states

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The inner head's, then the table."""
        return (*self.inner.parameters, self.table.log_p)

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """log p(x | z) but for its normaliser."""
        logits_NS = self.inner.logits(_of_inner(self.inner, features_NH[:, :-1]), positions_N)
        class_N = features_NH[:, -1].long()
        if torch.is_grad_enabled():
            return logits_NS + self.table.log_p.T[class_N]
        return logits_NS.add_(self.table.by_class[class_N])


def _of_inner(inner: OutputHead, features_MH: Float[Tensor, "M H"]) -> Float[Tensor, "M H"]:
    """A network's own features, in the dtype of its output head."""
    casts_itself = not inner.parameters or isinstance(inner, UniformHead)
    return features_MH if casts_itself else features_MH.to(inner.parameters[0].dtype)


@final
@dataclass(frozen=True)
class ClassOutputHead(OutputHead):
    """`inner`, the network's head with p(x), and log c(z | x): L classes cost one pass of the inner head.

    Features carry a tail behind the network's own: log Σ_x exp logit(x), and log p(z) of all classes.
    """

    inner: OutputHead
    table: ClassTable

    @property
    def num_states(self) -> int:
        """S."""
        return self.inner.num_states

    @property
    def log_class(self) -> Float[Tensor, "S L"]:
        """log c(z | x)."""
        return self.table.log_p

    @property
    def num_classes(self) -> int:
        """L."""
        return self.log_class.shape[1]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The inner head's, then the table."""
        return (*self.inner.parameters, self.log_class)

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """Those of the network by itself."""
        return self.inner.logits(self._parted(features_NH)[0], positions_N)

    def chosen(self, features: Float[Tensor, "B 1 D H"], choice: Int64[Tensor, "B N D"]) -> Rows:
        """The prediction under classes that are chosen, N a position."""
        own = features[..., : -self.num_classes - 1].expand(-1, choice.shape[1], -1, -1)
        return Rows(torch.cat([own, choice[..., None].to(own.dtype)], 3), ChosenClassHead(self.inner, self.table))

    def in_chunks(self, read: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> list[Tensor]:
        """What `read`, such as `tail`, makes of some rows of the tensors at a time; it is made once more in the backward pass."""
        chunks = zip(*(tensor.split(rows_at_once(self, 0)) for tensor in tensors), strict=True)
        if torch.is_grad_enabled():
            read = functools.partial(checkpoint, read, use_reentrant=False)
        found = [read(*chunk) for chunk in chunks]
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def tail(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> tuple[Tensor]:
        """The tail, 1 + L wide: log Σ_x exp logit(x), and log p(z) = log Σ_x p(x) c(z | x)."""
        logits_NS = self.inner.logits(features_NH, positions_N)
        log_norm_N1 = logits_NS.logsumexp(1, keepdim=True)
        if torch.is_grad_enabled():
            p_NL = (logits_NS - log_norm_N1).exp() @ self.log_class.exp()
        else:
            p_NL = logits_NS.sub_(log_norm_N1).exp_() @ self.table.p
        return (torch.cat([log_norm_N1, p_NL.clamp(min=_LEAST).log()], 1),)

    @torch.no_grad()
    def narrow_tail(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> tuple[Tensor]:
        """`tail` by products in bfloat16, to sample classes from: log p(z), and 0 for the normaliser, which has then no use."""
        own = self.inner
        own = replace(own, matmul_dtype=torch.bfloat16) if isinstance(own, LinearHead) else own
        p_NS = own.logits(features_NH, positions_N).softmax(1)
        p_NL = (p_NS.bfloat16() @ self.table.narrow_p).to(p_NS.dtype)
        return (F.pad(p_NL / p_NL.sum(1, keepdim=True), (1, 0), value=1.0).clamp(min=_LEAST).log(),)

    def log_target(
        self,
        features_MH: Float[Tensor, "M H"],
        positions_M: Int64[Tensor, " M"],
        targets_MT: Int64[Tensor, "M T"],
    ) -> Float[Tensor, "M L T"]:
        """log p(x | z) of T states a position under every class, from features of all."""
        own_MH, log_norm_M, log_p_ML = self._parted(features_MH)
        logit_MT = self.inner.target_logits(own_MH, positions_M, targets_MT).to(log_norm_M.dtype)
        log_class_MTL = F.embedding(targets_MT, self.log_class)
        return (log_class_MTL + (logit_MT - log_norm_M[:, None])[..., None] - log_p_ML[:, None]).transpose(1, 2)

    def log_marginal(
        self, features_MH: Float[Tensor, "M H"], positions_M: Int64[Tensor, " M"], log_weight_ML: Float[Tensor, "M L"]
    ) -> Float[Tensor, "M S"]:
        """log Σ_z w_z p(x | z) = log p(x) + log Σ_z c(z | x) w_z / p(z), from features of all classes."""
        own_MH, log_norm_M, log_p_ML = self._parted(features_MH)
        share_ML = (log_weight_ML.to(log_p_ML.dtype) - log_p_ML).exp()
        tilt_MS = (share_ML @ self.log_class.exp().T).clamp(min=_LEAST).log()
        return self.inner.logits(own_MH, positions_M) - log_norm_M[:, None] + tilt_MS

    def divergences(
        self,
        features_MH: Float[Tensor, "M H"],
        positions_M: Int64[Tensor, " M"],
        log_weight_ML: Float[Tensor, "M L"],
        *distributions: Float[Tensor, "M S"],
        of_components: bool,
    ) -> tuple[Float[Tensor, "M R"], Float[Tensor, " M"]]:
        """KL(q_r ‖ Σ_z w_z p(· | z)) for each distribution q_r, and Σ_z w_z KL(q_0 ‖ p(· | z)) where it is asked for, else zeros."""
        log_mean_MS = self.log_marginal(features_MH, positions_M, log_weight_ML)
        mixed_MR = torch.stack([kl_divergence(q_MS, log_mean_MS) for q_MS in distributions], 1)
        if not of_components:
            return mixed_MR, torch.zeros_like(mixed_MR[:, 0])
        own_MH, log_norm_M, log_p_ML = self._parted(features_MH)
        weight_ML = log_weight_ML.to(log_p_ML.dtype).exp()
        mean_log_class_MS = weight_ML @ self.log_class.T
        mean_log_p_M1 = (weight_ML * log_p_ML).sum(1, keepdim=True)
        log_p_MS = self.inner.logits(own_MH, positions_M) - log_norm_M[:, None]
        return mixed_MR, kl_divergence(distributions[0], log_p_MS + mean_log_class_MS - mean_log_p_M1)

    def _parted(self, features_MH: Tensor) -> tuple[Float[Tensor, "M H"], Float[Tensor, " M"], Float[Tensor, "M L"]]:
        """The network's own features, in the dtype of its output head, and the two parts of the tail."""
        own_MH, log_norm_M1, log_p_ML = features_MH.split(
            [features_MH.shape[1] - self.num_classes - 1, 1, self.num_classes], 1
        )
        wide = widest(features_MH.dtype)
        return _of_inner(self.inner, own_MH), log_norm_M1[:, 0].to(wide), log_p_ML.to(wide)


@dataclass(frozen=True)
class EveryClass(Chained):
    """What is said of each position under every class: one row of features that stands for all of them."""

    features: Float[Tensor, "B 1 D H"]
    output_head: ClassOutputHead
    chain: ClassChain | EitherChain

    def read_positions(
        self,
        positions: Positions,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]],
        log_weight: Float[Tensor, "M L"] | None,
        *,
        components: bool,
        chunk_rows: int,
    ) -> PositionReading:
        """See `Rows.read_positions`."""
        assert log_weight is not None
        features_MH, head = positions.features(self.features)[:, 0], self.output_head
        target_MLT = head.log_target(features_MH, positions.position, targets)
        none_M = target_MLT.new_zeros(len(target_MLT))
        if not distributions:
            return PositionReading(target_MLT, none_M[:, None][:, :0], none_M)
        read = functools.partial(head.divergences, of_components=components)
        found = head.in_chunks(read, features_MH, positions.position, log_weight, *distributions)
        return PositionReading(target_MLT, *found)

    @torch.no_grad()
    def marginals(
        self, positions: Positions, *, log_weight: Float[Tensor, "M L"] | None = None, chunk_rows: int = 0
    ) -> Float[Tensor, "M S"]:
        """See `Rows.marginals`."""
        features_MH = positions.features(self.features)[:, 0]
        log_weight = self.log_weight(positions) if log_weight is None else log_weight
        return self.output_head.log_marginal(features_MH, positions.position, log_weight).exp()

    def under(self, choice: Int64[Tensor, "B N D"]) -> Rows:
        """See `Rows.under`."""
        return self.output_head.chosen(self.features, choice)

    def log_probs(self) -> Float[Tensor, "B L D S"]:
        """See `Prediction.log_probs`: each class at all positions."""
        (num_batch, _, num_positions, _), num_classes = self.features.shape, self.output_head.num_classes
        code_L = torch.arange(num_classes, device=self.features.device)
        return self.under(code_L[None, :, None].expand(num_batch, -1, num_positions)).log_probs()


@dataclass(frozen=True)
class RevealedRows(Rows):
    """What the network says of each position by itself, L = 1, and the head that ties those together that are asked for.

    Where it is asked about positions one by one (their marginals, the product) it answers with the network's own distribution, which the
    chain keeps.
    """

    head: "ClassHead"
    context: Float[Tensor, "B D W"]
    orders: Sequence[Int64[Tensor, " D"]]
    lam: Latents
    chosen_by: "RevealedRows | None" = None  # whose classes are sampled in place of its own
    segments: Int64[Tensor, "B D"] | None = None  # see `Stages`
    is_product: ClassVar[bool] = False

    def over(self, where: Bool[Tensor, "B D"], *, to_sample: bool = False) -> EveryClass:
        """The prediction under every class, the chain going through these positions; `to_sample` as `ClassHead.forward` has it."""
        asked = self.features[:, 0], where, self.output_head, self.context, self.orders, self.segments
        return self.head(*asked, to_sample=to_sample)

    def read(
        self,
        positions: Positions,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]] = (),
        *,
        components: bool = False,
        chunk_rows: int = 0,
    ) -> Reading:
        """See `Rows.read`."""
        where_BD = torch.zeros(self.context.shape[:2], dtype=torch.bool, device=self.context.device)
        where_BD[positions.example, positions.position] = True
        every = self.over(where_BD)
        return every.read(positions, targets, distributions, components=components, chunk_rows=chunk_rows)

    @torch.no_grad()
    def walk(self, where: Bool[Tensor, "B D"], rows: int) -> Walk:
        """See `Prediction.walk`: under classes that are sampled first, or with λ summed out."""
        every = self.over(where, to_sample=not self.lam.enumerated)
        if self.lam.enumerated:
            return every.walk(where, rows)
        by = every if self.chosen_by is None else self.chosen_by.over(where, to_sample=True)
        return every.under(by.codes(self.lam)).walk(where, rows)


class ClassHead(nn.Module):
    """The table of classes, the relations of class pairs, and the gates that choose among them from both positions' features."""

    def __init__(self, settings: ClassChainSettings, width: int, num_states: int) -> None:
        super().__init__()
        self.settings = settings
        self._kept: tuple[tuple[Any, ...], ClassTable] | None = None
        size, relations = settings.codebook_size, settings.relations
        self.table = nn.Parameter(torch.empty(num_states, size))
        self.relation = nn.Parameter(torch.empty(relations, size, size))
        self.left = nn.Linear(width, width)
        self.right = nn.Linear(width, width, bias=False)
        self.gap = nn.Embedding(_DISTANCES, width)
        self.gate = nn.Linear(width, relations + 1 + bool(settings.rank))
        nn.init.normal_(self.table, std=settings.init_scale)
        nn.init.normal_(self.relation, std=settings.init_scale)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        if settings.order == "turns":
            self.along = nn.Embedding(2, width)
            nn.init.zeros_(self.along.weight)
        if settings.rank:
            self.of_left = ContextFactor(width, settings.rank, size)
            self.of_right = ContextFactor(width, settings.rank, size)

    @torch.no_grad()
    def begin_with(self, class_S: Int64[Tensor, " S"], log_ratios: Sequence[Float[Tensor, "L L"]]) -> None:
        """Give token x the class `class_S[x]` (-1: none), and the first relations these log-ratios of pairs.

        Without it the table and relations are random, and the classes are found by gradients alone, far more slowly.
        """
        known_N = (class_S >= 0).nonzero()[:, 0]
        self.table.zero_()
        self.table[known_N, class_S[known_N]] = self.settings.sharpness + math.log(self.table.shape[1])
        for relation, log_ratio_LL in zip(self.relation, log_ratios, strict=False):
            relation.copy_(log_ratio_LL)

    def forward(
        self,
        features: Float[Tensor, "B D H"],
        is_unknown: Bool[Tensor, "B D"],
        inner: OutputHead,
        context: Float[Tensor, "B D W"],
        orders: Sequence[Int64[Tensor, " D"]],
        segments: Int64[Tensor, "B D"] | None = None,
        *,
        to_sample: bool = False,
    ) -> EveryClass:
        """The prediction under every class. The gates look at `context`; the chain takes the unknown positions in one of `orders`.

        `to_sample`: of use only to sample classes from, so that it may be made by narrower products. Where `segments` tell records apart,
        a record's classes are independent of another's.
        """
        narrow = to_sample and self.settings.matmul_dtype == "bfloat16" and not torch.is_grad_enabled()
        head = ClassOutputHead(inner, self._classes())
        row_M, position_M = is_unknown.nonzero(as_tuple=True)
        (tail_MF,) = head.in_chunks(head.narrow_tail if narrow else head.tail, features[row_M, position_M], position_M)
        tail_BDF = tail_MF.new_zeros(*is_unknown.shape, tail_MF.shape[1]).index_put((row_M, position_M), tail_MF)
        given = tail_BDF, is_unknown, context, segments
        chains = [self._chain(*given, *numbered) for numbered in enumerate(orders)]
        # The tail holds logarithms, which take more digits than features in a narrow dtype have.
        features_BDF = torch.cat([features.to(tail_BDF.dtype), tail_BDF], 2)
        return EveryClass(features_BDF[:, None], head, EitherChain((chains[0], chains[1])) if chains[1:] else chains[0])

    def train(self, mode: bool = True) -> "ClassHead":  # noqa: FBT001, FBT002 (torch's)
        """See `nn.Module.train`; the weights may be others from here on."""
        self._kept = None
        return super().train(mode)

    def _classes(self) -> ClassTable:
        """The table as probabilities; kept from one prediction to the next while no weights are trained."""
        made_of = (self.table.data_ptr(), self.table._version, self.table.dtype)
        if self._kept is not None and self._kept[0] == made_of and not torch.is_grad_enabled():
            return self._kept[1]
        found = ClassTable(self.table.to(widest(self.table.dtype)).log_softmax(1))
        self._kept = None if self.training or torch.is_grad_enabled() else (made_of, found)
        return found

    def _chain(
        self,
        tail_BDF: Float[Tensor, "B D F"],
        is_unknown: Bool[Tensor, "B D"],
        context: Float[Tensor, "B D W"],
        segments: Int64[Tensor, "B D"] | None,
        number: int,
        order: Int64[Tensor, " D"],
    ) -> ClassChain:
        """The distribution of the classes given x_t, along the order of this number; the tail is 0 where a position is known."""
        num_unknown, num_classes = max(1, int(is_unknown.sum(1).max())), tail_BDF.shape[2] - 1
        rank_BN = (~is_unknown[:, order]).byte().sort(dim=1, stable=True)[1][:, :num_unknown]
        place_BN = order[rank_BN]
        unknown_BN = is_unknown.gather(1, place_BN)
        p_BNL = tail_BDF[..., 1:].gather(1, place_BN[..., None].expand(-1, -1, num_classes)).exp()
        p_BNL = torch.where(unknown_BN[..., None], p_BNL, 1 / num_classes)
        h_BNW = context.gather(1, place_BN[..., None].expand(-1, -1, context.shape[2]))
        potentials = self._potentials(h_BNW, rank_BN, number, p_BNL.dtype)
        if segments is not None:
            segment_BN = segments.gather(1, place_BN)
            potentials = potentials.cut(segment_BN[:, 1:] != segment_BN[:, :-1])
        given = (p_BNL, potentials, place_BN, unknown_BN)
        settings, num_positions = self.settings, is_unknown.shape[1]
        if settings.combine == "product_of_experts":
            return ClassChain.multiplied(*given, num_positions=num_positions)
        iterations, tolerance = settings.sinkhorn_iterations, settings.sinkhorn_tolerance
        return ClassChain.fitted(*given, num_positions=num_positions, iterations=iterations, tolerance=tolerance)

    def _potentials(
        self, h_BNW: Float[Tensor, "B N W"], rank_BN: Int64[Tensor, "B N"], number: int, dtype: torch.dtype
    ) -> PairPotentials:
        """The weights of independence and of each relation, and the terms of low rank, for each pair of neighbours."""
        normed_BNW = F.layer_norm(h_BNW, h_BNW.shape[-1:])
        distance_BP = (rank_BN[:, 1:] - rank_BN[:, :-1]).clamp(1, _DISTANCES) - 1
        both_BPW = self.left(normed_BNW[:, :-1]) + self.right(normed_BNW[:, 1:]) + self.gap(distance_BP)
        if self.settings.order == "turns":
            both_BPW = both_BPW + self.along.weight[number]
        seen_BPW = F.gelu(both_BPW)
        gate_BPK = self.gate(seen_BPW).softmax(-1).to(dtype)
        relation = self.relation.to(dtype).exp()
        if not self.settings.rank:
            return PairPotentials(gate_BPK, relation)
        share_BP11 = self.settings.rank * gate_BPK[..., -1:, None]
        left, right = (factor(seen_BPW).to(dtype) for factor in (self.of_left, self.of_right))
        return PairPotentials(gate_BPK[..., :-1], relation, share_BP11 * left, right)


class ContextFactor(nn.Module):
    """What a pair's features make of each class: a distribution over Q terms, that of both classes of a pair is to be the same."""

    def __init__(self, width: int, rank: int, num_classes: int) -> None:
        super().__init__()
        self.table = nn.Parameter(_SPREAD * torch.randn(rank, num_classes))
        self.by_class = nn.Parameter(torch.randn(_WIDTH, num_classes) / math.sqrt(_WIDTH))
        self.by_context = nn.Linear(width, rank * _WIDTH)
        nn.init.zeros_(self.by_context.weight)
        nn.init.zeros_(self.by_context.bias)

    def forward(self, seen: Float[Tensor, "*pairs W"]) -> Float[Tensor, "*pairs Q L"]:
        """The distributions, over Q."""
        return (self.table + self.by_context(seen).unflatten(-1, (-1, _WIDTH)) @ self.by_class).softmax(-2)


class ClassChainMixture(CodedMixture):
    """`latent_head` behind a network, whose marginals it leaves as they are; for pixels also `latent_colour`, by the channel.

    Of an image the chain goes through the pixels in boustrophedon order, along rows or columns, and through the channels of each.
    """

    settings: ClassChainSettings

    def __init__(self, settings: ClassChainSettings, network: Network) -> None:
        is_masked = network.image_shape is None and getattr(network.config, "process", "masked") == "masked"
        allowed = "masked over a network of another process, where all is unknown"
        check(is_masked or settings.positions == "masked", "mixture.positions", settings.positions, allowed)
        super().__init__(settings, network, shares_backbone=settings.freeze_backbone)
        self.latent_head = ClassHead(settings, network.width, network.num_states)
        if network.image_shape is not None:
            self.latent_colour = nn.Embedding(network.image_shape[2], network.width)

    def begin(self, sequences: Sequences, generator: torch.Generator) -> None:
        """See `Mixture.begin`: the classes are those of tokens that stand in like company."""
        tokens_ND = sequences()
        tokens_ND = torch.cat([tokens_ND[:, order_D] for order_D in self._orders(tokens_ND.shape[1], tokens_ND.device)])
        num_states, num_classes = self.latent_head.table.shape
        class_S, log_ratio_LL = token_classes(tokens_ND, num_states, num_classes, generator)
        log_ratios: Sequence[Tensor] = [log_ratio_LL, 0.5 * log_ratio_LL]
        if self.settings.counted == "distances":
            log_ratios = class_log_ratios(tokens_ND, class_S, num_classes, self.settings.relations).unbind()
        self.latent_head.begin_with(class_S, log_ratios)

    @property
    def joint_over(self) -> str:
        """See `Mixture.joint_over`."""
        return self.settings.positions

    def num_calls(self, limit: int) -> int:
        """See `Mixture.num_calls`: 1, for all classes."""
        return 1

    @property
    def kept_beside(self) -> int:
        """See `Mixture.kept_beside`: of each class a tail and its chain."""
        return 16 * self.settings.codebook_size

    def drive(self, stages: Any, lam: Latents) -> Rows:
        """See `Mixture.drive`."""
        features_BDH = stages.features()
        # Behind the network's own may stand what its output head reads beside, in a wider dtype.
        context_BDW = features_BDH[..., : self.network.width].to(self.latent_head.left.weight.dtype)
        if self.network.image_shape is not None:
            pixel_BPC = F.layer_norm(stages.hidden, stages.hidden.shape[-1:])
            colour_C = torch.arange(self.network.image_shape[2], device=pixel_BPC.device)
            context_BDW = (pixel_BPC[:, None] + self.latent_colour(colour_C)[:, None]).flatten(1, 2)
        orders = self._orders(features_BDH.shape[1], features_BDH.device)
        if self.settings.positions == "revealed":
            more = self.latent_head, context_BDW, orders, lam, None, stages.segments
            return RevealedRows(features_BDH[:, None], stages.output_head, *more)
        asked = features_BDH, stages.unknown, stages.output_head, context_BDW, orders, stages.segments
        every: EveryClass = self.latent_head(*asked, to_sample=not lam.enumerated)
        return every if lam.enumerated else every.under(every.codes(lam))

    def guided(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Latents, cond: Tensor
    ) -> tuple[Prediction, Prediction]:
        """See `CodedMixture.guided`."""
        if self.settings.positions == "masked":
            return super().guided(x_t, t, lam, cond)
        conditional, free = (cast(RevealedRows, self(x_t, t, lam, given)) for given in (cond, None))
        return conditional, replace(free, chosen_by=conditional)

    def _orders(self, num_positions: int, device: torch.device) -> list[Int64[Tensor, " D"]]:
        """The orders that a chain may go in: one, or by turns two."""
        shape, order = self.network.image_shape, self.settings.order
        if shape is None:
            return [torch.arange(num_positions, device=device)]
        return [
            boustrophedon(shape, along).to(device) for along in (("rows", "columns") if order == "turns" else (order,))
        ]


@functools.cache
def boustrophedon(shape: tuple[int, int, int], along: Literal["rows", "columns"] = "rows") -> Int64[Tensor, " D"]:
    """The positions of an image (rows, columns, channels) row by row, each second row from right to left, a pixel's channels together.

    Or column by column, each second one upwards.
    """
    rows, columns, channels = shape
    position_RQC = torch.arange(math.prod(shape)).view(channels, rows, columns).permute(1, 2, 0)
    line_LPC = (position_RQC if along == "rows" else position_RQC.transpose(0, 1)).clone()
    line_LPC[1::2] = line_LPC[1::2].flip(1)
    return line_LPC.flatten()
