"""λ as a string of token classes: each token belongs to classes, and a chain ties the classes of neighbouring open positions.

With p^d the product that the network says without λ, c(z | x) the classes of token x and p^d(z) = Σ_x p^d(x) c(z | x):

    p(x | x_t; z) = Π_d p^d(x^d) c(z^d | x^d) / p^d(z^d),    p(z | x_t) a chain with marginals p^d(z)

so the marginals stay those of the network, and all that is learned is how tokens go together: the class pairs of a class-based n-gram
model (Brown et al. 1992) as a copula, gated by what the network says of both positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from di4c_lm.losses.positions import Positions
from di4c_lm.losses.reading import PositionReading
from di4c_lm.mixtures.base import Chained
from di4c_lm.mixtures.class_chain import ClassChain, Ties
from di4c_lm.mixtures.class_output_head import ClassOutputHead
from di4c_lm.mixtures.latent import string_uniforms
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.prediction import Rows
from di4c_lm.processes.denoiser import OutputHead, widest

_GAPS = 8  # distances of open neighbours that are told apart; the last stands for all that are longer
_SHARPNESS = 4.0  # log-odds of the class that a token is given, against all others together


@dataclass(frozen=True)
class EveryClass(Chained):
    """What is said of each position under every class: one row of features that stands for all of them."""

    output_head: ClassOutputHead

    def _read(
        self,
        positions: Positions,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]],
        log_weight_ML: Float[Tensor, "M L"],
        *,
        components: bool,
        chunk_rows: int,
    ) -> PositionReading:
        features_MH, head = self.features[positions.example, 0, positions.position], self.output_head
        target_MLT = head.log_target(features_MH, positions.position, targets)
        none_M = target_MLT.new_zeros(len(target_MLT))
        if not distributions:
            return PositionReading(target_MLT, none_M[:, None][:, :0], none_M)
        found = head.divergences(
            features_MH, positions.position, log_weight_ML, distributions, of_components=components
        )
        return PositionReading(target_MLT, *found)

    def marginals(self, positions: Positions, *, chunk_rows: int = 0) -> Float[Tensor, "M S"]:
        """See `Rows.marginals`."""
        features_MH = self.features[positions.example, 0, positions.position]
        with torch.no_grad():
            return self.output_head.mean_law(features_MH, positions.position, self.log_weight(positions))


class ClassHead(nn.Module):
    """The table of classes, the relations of class pairs, and the gates that choose among them from both positions' features."""

    def __init__(self, latent: LatentConfig, width: int, num_states: int) -> None:
        super().__init__()
        self.latent = latent
        size, relations = latent.codebook_size, latent.relations
        self.table = nn.Parameter(torch.empty(num_states, size))
        self.relation = nn.Parameter(torch.empty(relations, size, size))
        self.left = nn.Linear(width, width)
        self.right = nn.Linear(width, width, bias=False)
        self.gap = nn.Embedding(_GAPS, width)
        self.gate = nn.Linear(width, relations + 1)
        nn.init.normal_(self.table, std=latent.init_scale)
        nn.init.normal_(self.relation, std=latent.init_scale)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    @torch.no_grad()
    def begin_with(self, class_S: Int64[Tensor, " S"], log_ratio_LL: Float[Tensor, "L L"]) -> None:
        """Give token x the class `class_S[x]` (-1: none), and the first two relations the pairs' log-ratios, whole and halved.

        Without it the table and relations are random, and the classes are found by gradients alone, far more slowly.
        """
        known_N = (class_S >= 0).nonzero()[:, 0]
        self.table.zero_()
        self.table[known_N, class_S[known_N]] = _SHARPNESS + math.log(self.table.shape[1])
        for relation, share in zip(self.relation, (1.0, 0.5), strict=False):
            relation.copy_(share * log_ratio_LL)

    def output_head(self, trunk: OutputHead) -> ClassOutputHead:
        """The network's output head with the table behind it."""
        wide = widest(self.table.dtype)
        return ClassOutputHead(trunk, self.table.to(wide).log_softmax(1))

    def forward(
        self,
        features: Float[Tensor, "B D H"],
        is_open: Bool[Tensor, "B D"],
        trunk: OutputHead,
        lam: Tensor,
        *,
        context: Float[Tensor, "B D W"] | None = None,
        order: Int64[Tensor, " D"] | None = None,
    ) -> Rows:
        """Features (B, N, D, F) with the tail that `ClassOutputHead` reads; where `lam` holds codes (B, L, 1), N = 1 row of all classes.

        Where `lam` holds uniforms (B, N, 1), of N strings of classes drawn by them, without the chain. The gates look at `context`, or
        without it at the features; the chain goes through the positions in `order`, or in their own.
        """
        output_head = self.output_head(trunk)
        order = torch.arange(features.shape[1], device=features.device) if order is None else order
        chain, tail_BDF = self._chain(features, is_open, output_head, features if context is None else context, order)
        # The tail holds logarithms, which take more digits than features in a narrow dtype have.
        told = torch.cat([features.to(tail_BDF.dtype), tail_BDF], 2)[:, None]
        if not lam.is_floating_point():
            return EveryClass(told, output_head, chain)
        return Rows(output_head.chosen(told, chain.sample(string_uniforms(lam, features.shape[1]))), output_head)

    def _chain(
        self, features: Tensor, is_open: Tensor, output_head: ClassOutputHead, context: Tensor, order: Tensor
    ) -> tuple[ClassChain, Tensor]:
        """The law of the classes given x_t, and the tail of the features, zeros where a position is closed."""
        row_M, position_M = is_open.nonzero(as_tuple=True)
        tail_MF = output_head.enumerated(features[row_M, position_M], position_M)
        tail_BDF = tail_MF.new_zeros(*is_open.shape, tail_MF.shape[1]).index_put((row_M, position_M), tail_MF)
        num_open = max(1, int(is_open.sum(1).max()))
        rank_BN = (~is_open[:, order]).byte().sort(dim=1, stable=True)[1][:, :num_open]
        place_BN = order[rank_BN]
        open_BN = is_open.gather(1, place_BN)
        law_BNL = tail_BDF[..., 1:].gather(1, place_BN[..., None].expand(-1, -1, output_head.num_classes)).exp()
        law_BNL = torch.where(open_BN[..., None], law_BNL, 1 / output_head.num_classes)
        h_BNW = context.gather(1, place_BN[..., None].expand(-1, -1, context.shape[2]))
        ties = Ties(self._gates(h_BNW, rank_BN).to(law_BNL.dtype), self.relation.to(law_BNL.dtype).exp())
        chain = ClassChain.fitted(
            law_BNL, ties, place_BN, open_BN, num_positions=is_open.shape[1], sweeps=self.latent.sweeps
        )
        return chain, tail_BDF

    def _gates(self, h_BNW: Float[Tensor, "B N W"], rank_BN: Int64[Tensor, "B N"]) -> Float[Tensor, "B P K"]:
        """The weight of no tie and of each relation, for each pair of neighbours."""
        normed_BNW = F.layer_norm(h_BNW, h_BNW.shape[-1:])
        gap_BP = (rank_BN[:, 1:] - rank_BN[:, :-1]).clamp(1, _GAPS) - 1
        both_BPW = self.left(normed_BNW[:, :-1]) + self.right(normed_BNW[:, 1:]) + self.gap(gap_BP)
        return self.gate(F.gelu(both_BPW)).softmax(-1)
