"""λ as classes of the unknown tokens, one a position, in a chain: a class-based copula over the marginals of a network.

With p^d the product that the network predicts by itself, c(z | x) the classes of token x and p^d(z) = Σ_x p^d(x) c(z | x):

    p(x | x_t; z) = Π_d p^d(x^d) c(z^d | x^d) / p^d(z^d),    p(z | x_t) a Markov chain with marginals p^d(z)

so the marginals stay those of the network, and all that is learned is how tokens go together: the class pairs of a class-based n-gram
model (Brown et al. 1992) as a copula, gated by what the network knows of both positions. The chain is fitted to its marginals by Sinkhorn
iterations, so that whatever the pair potentials are, they are (nearly) kept.

The chain goes through all unknown positions (`positions=masked`), whose classes take the output head at each of them. What a step reveals
depends on what is between, and hardly on what is further off, since each tie is mixed with independence: so the chain is made where
it is asked for, and where two positions of that are within `reach`, and begins anew behind a longer gap with the network's own
distribution. With `positions=revealed` it goes through what is asked for alone, so that the head is run once a token in all. That is
another distribution with the same marginals: positions that are further apart are tied by the gates, which know their distance.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import at_least, check, positive, section, setting
from di4c_lm.losses.reading import Reading
from di4c_lm.mixtures.base import CodedMixture, Latents, MixtureSettings, Sequences
from di4c_lm.mixtures.class_counts import class_log_ratios, token_classes
from di4c_lm.mixtures.class_outputs import ClassOutputHead, ClassTable, EveryClass
from di4c_lm.mixtures.class_relations import ClassChain, EitherChain, PairPotentials
from di4c_lm.networks.base import Network, Rows
from di4c_lm.processes.denoiser import OutputHead, Positions, Prediction, Walk, widest

_DISTANCES = 8  # between neighbours that are told apart; the last stands for all that are longer
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
    reach: int = setting(
        4, "links from masked to next masked position, over which two that a step reveals are tied; 0: any number"
    )
    matmul_dtype: Literal["same", "bfloat16"] = setting(
        "same", "type of the products that say the distribution of each position's class, in sampling alone"
    )
    freeze_backbone: bool = setting(True, "keep the teacher's weights and train λ's alone")

    reads_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, 1, "codebook_size", "relations", "sinkhorn_iterations")
        at_least(self, 0, "rank", "sinkhorn_tolerance", "reach")
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

    def unused(self) -> dict[str, str]:
        """Keys without effect, each with the reason."""
        if self.positions == "revealed":
            return {"reach": "where positions=revealed"}
        return {"reach": "where combine=product_of_experts"} if self.combine == "product_of_experts" else {}

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
        self._has_reach = bool(settings.reach) and is_masked and "reach" not in settings.unused()
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

    def reads_at(self, asked: Bool[Tensor, "B D"], unknown: Bool[Tensor, "B D"], lam: Latents) -> Bool[Tensor, "B D"]:
        """See `Mixture.reads_at`: to sample classes from, what is far from all that is asked for has hardly a part."""
        if self._has_reach and not lam.enumerated:
            return within_reach(asked, unknown, self.settings.reach)
        return super().reads_at(asked, unknown, lam)

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
        through, segments = stages.unknown, stages.segments
        if self._has_reach and not lam.enumerated and stages.asked is not None:
            through = stages.asked  # `reads_at` has widened it to its reach
            piece = pieces(through, stages.unknown)
            segments = piece if segments is None else segments * (piece.shape[1] + 1) + piece
        asked = features_BDH, through, stages.output_head, context_BDW, orders, segments
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


def within_reach(asked: Bool[Tensor, "B D"], unknown: Bool[Tensor, "B D"], reach: int) -> Bool[Tensor, "B D"]:
    """The positions asked for, with the unknown ones between any two of them that are at most `reach` links apart.

    A link goes from one unknown position to the next.
    """
    unknown = unknown | asked
    link_BD = unknown.cumsum(1)
    never = reach + 1
    before_BD = torch.where(asked, link_BD, -never).cummax(1)[0]
    after_BD = torch.where(asked, link_BD, never + asked.shape[1]).flip(1).cummin(1)[0].flip(1)
    return unknown & (after_BD - before_BD <= reach)


def pieces(through: Bool[Tensor, "B D"], unknown: Bool[Tensor, "B D"]) -> Int64[Tensor, "B D"]:
    """The number of each position's piece: two that the chain goes through are of one where it leaves out no unknown one between them."""
    return (unknown & ~through).cumsum(1)


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
