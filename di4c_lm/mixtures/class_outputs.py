"""Output heads of classes: all of them for one pass of the network's own head, or one that is chosen at each position."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from di4c_lm.losses.reading import PositionReading
from di4c_lm.mixtures.base import Chained
from di4c_lm.mixtures.class_relations import ClassChain, EitherChain
from di4c_lm.networks.base import Rows
from di4c_lm.networks.dit import UniformHead
from di4c_lm.processes.categorical import kl_divergence
from di4c_lm.processes.denoiser import LinearHead, OutputHead, Positions, WrappedHead, rows_at_once, widest

_LEAST = 1e-30  # of a probability, so that its logarithm is finite


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


@dataclass(frozen=True)
class TabledHead(WrappedHead):
    """`inner`, the network's head, with the classes of its states."""

    table: ClassTable

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The inner head's, then the table."""
        return (*self.inner.parameters, self.table.log_p)


@final
@dataclass(frozen=True)
class ChosenClassHead(TabledHead):
    """The head under one class a position: p(x | z) up to its normaliser. The last of the features is the number of the class."""

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
class ClassOutputHead(TabledHead):
    """The head with p(x), and log c(z | x): L classes cost one pass of the inner head.

    Features carry a tail behind the network's own: log Σ_x exp logit(x), and log p(z) of all classes.
    """

    @property
    def log_class(self) -> Float[Tensor, "S L"]:
        """log c(z | x)."""
        return self.table.log_p

    @property
    def num_classes(self) -> int:
        """L."""
        return self.log_class.shape[1]

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
