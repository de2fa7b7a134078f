"""Token classes behind an output head: p(x | z) = p(x) c(z | x) / p(z); the product of positions is kept, L classes cost one head.

Each state belongs to class z with probability c(z | x), a table. Features carry a tail behind the network's own: of an enumerated mixture
the logarithms of the normaliser of p(x) and of p(z); of drawn classes 0 and the class, one-hot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from di4c_lm.networks.output_head import vjp_by_autograd
from di4c_lm.processes.categorical import kl_divergence
from di4c_lm.processes.denoiser import OutputHead, row_chunks, rows_at_once, widest

_LEAST = 1e-30  # of a class's probability


@final
@dataclass(frozen=True)
class ClassOutputHead(OutputHead):
    """`trunk`, which says p(x), and log c(z | x)."""

    trunk: OutputHead
    log_class: Float[Tensor, "S L"]

    @property
    def num_states(self) -> int:
        """S."""
        return self.trunk.num_states

    @property
    def num_classes(self) -> int:
        """L."""
        return self.log_class.shape[1]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The trunk's, then the table."""
        return (*self.trunk.parameters, self.log_class)

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """log p(x | z) but for its normaliser, z told by the tail of the features."""
        own_NH, _, told_NL = self._parted(features_NH)
        return self.trunk.logits(own_NH, positions_N) + told_NL @ self.log_class.T

    def vjp(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N H"]:
        """By autograd."""
        return vjp_by_autograd(self, features_NH, positions_N, grad_NS, parameter_grads)

    def chosen(self, features: Float[Tensor, "B 1 D H"], choice: Int64[Tensor, "B N D"]) -> Float[Tensor, "B N D H"]:
        """The features with N strings of classes told, in place of their enumeration."""
        own = features[..., : -self.num_classes - 1].expand(-1, choice.shape[1], -1, -1)
        tail = F.pad(F.one_hot(choice, self.num_classes), (1, 0))
        return torch.cat([own, tail.to(own.dtype)], 3)

    def every(self, features: Float[Tensor, "B 1 D H"]) -> Float[Tensor, "B L D H"]:
        """The features with each class told, the same at all positions."""
        code_L = torch.arange(self.num_classes, device=features.device)
        return self.chosen(features, code_L[None, :, None].expand(len(features), -1, features.shape[2]))

    def enumerated(
        self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]
    ) -> Float[Tensor, "N tail"]:
        """The tail of an enumerated mixture, 1 + L wide: log Σ_x exp logit(x), and log p(z) = log Σ_x p(x) c(z | x)."""
        tails = [
            checkpoint(self._tail, features_NH[rows], positions_N[rows], use_reentrant=False)
            for rows in row_chunks(len(features_NH), rows_at_once(self, 0))
        ]
        return torch.cat(tails) if tails else features_NH.new_zeros(0, 1 + self.num_classes)

    def log_target(
        self,
        features_MH: Float[Tensor, "M H"],
        positions_M: Int64[Tensor, " M"],
        targets_MT: Int64[Tensor, "M T"],
    ) -> Float[Tensor, "M L T"]:
        """log p(x | z) of T states a position under every class, from enumerated features."""
        own_MH, log_norm_M, log_p_ML = self._parted(features_MH)
        logit_MT = self.trunk.target_logits(own_MH, positions_M, targets_MT).to(log_norm_M.dtype)
        log_class_MTL = F.embedding(targets_MT, self.log_class)
        return (log_class_MTL + (logit_MT - log_norm_M[:, None])[..., None] - log_p_ML[:, None]).transpose(1, 2)

    def divergences(
        self,
        features_MH: Float[Tensor, "M H"],
        positions_M: Int64[Tensor, " M"],
        log_weight_ML: Float[Tensor, "M L"],
        laws: Sequence[Float[Tensor, "M S"]],
        *,
        of_components: bool,
    ) -> tuple[Float[Tensor, "M R"], Float[Tensor, " M"]]:
        """KL(q_r ‖ Σ_z w_z p(· | z)) for each law q_r, and Σ_z w_z KL(q_0 ‖ p(· | z)) where it is asked for, else zeros."""
        found = [
            checkpoint(
                self._divergence,
                features_MH[rows],
                positions_M[rows],
                log_weight_ML[rows],
                [law_MS[rows] for law_MS in laws],
                of_components,
                use_reentrant=False,
            )
            for rows in row_chunks(len(features_MH), rows_at_once(self, 0))
        ]
        if not found:
            return log_weight_ML.new_zeros(0, len(laws)), log_weight_ML.new_zeros(0)
        mixed, components = zip(*found, strict=True)
        return torch.cat(mixed), torch.cat(components)

    def mean_law(
        self, features_MH: Float[Tensor, "M H"], positions_M: Int64[Tensor, " M"], log_weight_ML: Float[Tensor, "M L"]
    ) -> Float[Tensor, "M S"]:
        """Σ_z w_z p(· | z), from enumerated features."""
        return self._log_mean(features_MH, positions_M, log_weight_ML).exp()

    def _log_mean(self, features_MH: Tensor, positions_M: Tensor, log_weight_ML: Tensor) -> Float[Tensor, "M S"]:
        """log p(x) + log Σ_z c(z | x) w_z / p(z)."""
        own_MH, log_norm_M, log_p_ML = self._parted(features_MH)
        share_ML = (log_weight_ML.to(log_p_ML.dtype) - log_p_ML).exp()
        tilt_MS = (share_ML @ self.log_class.exp().T).clamp(min=_LEAST).log()
        return self.trunk.logits(own_MH, positions_M) - log_norm_M[:, None] + tilt_MS

    def _divergence(
        self,
        features_MH: Tensor,
        positions_M: Tensor,
        log_weight_ML: Tensor,
        laws: list[Tensor],
        of_components: bool,  # noqa: FBT001 (checkpointing passes it by position)
    ) -> tuple[Tensor, Tensor]:
        log_mean_MS = self._log_mean(features_MH, positions_M, log_weight_ML)
        mixed_MR = torch.stack([kl_divergence(law_MS, log_mean_MS) for law_MS in laws], 1)
        if not of_components:
            return mixed_MR, torch.zeros_like(mixed_MR[:, 0])
        own_MH, log_norm_M, log_p_ML = self._parted(features_MH)
        weight_ML = log_weight_ML.to(log_p_ML.dtype).exp()
        mean_log_class_MS = weight_ML @ self.log_class.T
        mean_log_p_M1 = (weight_ML * log_p_ML).sum(1, keepdim=True)
        log_p_MS = self.trunk.logits(own_MH, positions_M) - log_norm_M[:, None]
        return mixed_MR, kl_divergence(laws[0], log_p_MS + mean_log_class_MS - mean_log_p_M1)

    def _tail(self, features_NH: Tensor, positions_N: Tensor) -> Float[Tensor, "N tail"]:
        logits_NS = self.trunk.logits(features_NH, positions_N)
        log_norm_N1 = logits_NS.logsumexp(1, keepdim=True)
        p_NL = (logits_NS - log_norm_N1).exp() @ self.log_class.exp()
        return torch.cat([log_norm_N1, p_NL.clamp(min=_LEAST).log()], 1)

    def _parted(self, features_MH: Tensor) -> tuple[Float[Tensor, "M H"], Float[Tensor, " M"], Float[Tensor, "M L"]]:
        """The network's own features, in the dtype of its output head, and the two parts of the tail."""
        own_MH, log_norm_M1, log_p_ML = features_MH.split(
            [features_MH.shape[1] - self.num_classes - 1, 1, self.num_classes], 1
        )
        wide = widest(features_MH.dtype)
        if self.trunk.parameters:
            own_MH = own_MH.to(self.trunk.parameters[0].dtype)
        return own_MH, log_norm_M1[:, 0].to(wide), log_p_ML.to(wide)
