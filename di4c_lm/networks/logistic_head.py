"""The truncated discretised logistic: two numbers a position, read out into the probabilities of S ordered levels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.processes.denoiser import OutputHead, WrappedHead, widest

_SCALE_SHIFT = 2.0  # added to -log s, as published


class _Bins(NamedTuple):
    """Of the S bins: their edges, and their width, over s."""

    edges_NE: Float[Tensor, "N E"]  # e_0, ..., e_S
    sharpness_N1: Float[Tensor, "N 1"]  # exp(2 - log s)
    share_N1: Float[Tensor, "N 1"]  # 1 - exp(e_k - e_{k+1}), the same for all bins


@final
@dataclass(frozen=True)
class LogisticHead(OutputHead):
    """A logistic distribution on [-1, 1], its mass in S equal bins, normalised (Salimans et al. 2017; Campbell et al. 2022, section 5.2).

    Features are (μ, log s) of each position. With the edges e_k = (-1 + 2k/S - μ) exp(2 - log s), bin k has mass σ(e_{k+1}) - σ(e_k),
    which is σ(e_{k+1}) σ(-e_k) (1 - exp(e_k - e_{k+1})) without cancellation; as published, `lift` σ(e_{k+1}) is added to it. `both_tails`
    (published as fix_logistic) takes the lesser of that and the same seen from the other side, with `lift` σ(-e_k).
    """

    num_states: int
    lift: float = 1e-6
    both_tails: bool = False
    parameters: tuple[Tensor, ...] = ()

    def logits(self, features_NH: Float[Tensor, "N 2"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """Log-masses, in at least float32."""
        bins = self._bins(features_NH)
        log_below_NE = F.logsigmoid(bins.edges_NE)
        log_above_NE = log_below_NE - bins.edges_NE
        logits_NS = log_below_NE[:, 1:] + self._log_lifted(log_above_NE[:, :-1], bins)
        if not self.both_tails:
            return logits_NS
        return torch.minimum(logits_NS, log_above_NE[:, :-1] + self._log_lifted(log_below_NE[:, 1:], bins))

    def vjp(
        self,
        features_NH: Float[Tensor, "N 2"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N 2"]:
        """In closed form.

        With g = σ(-e_k) share + lift, d logit_k = σ(-e_{k+1}) de_{k+1} - σ(e_k) σ(-e_k) share / g de_k + σ(-e_k) / g dshare.
        """
        if self.both_tails:
            return super().vjp(features_NH, positions_N, grad_NS, parameter_grads)
        edges_NE, sharpness_N1, share_N1 = self._bins(features_NH)
        below_NE = edges_NE.sigmoid()
        above_NS = (-edges_NE[:, :-1]).sigmoid()
        lifted_NS = grad_NS * above_NS / (above_NS * share_N1 + self.lift)
        grad_NE = F.pad(grad_NS * (-edges_NE[:, 1:]).sigmoid(), (1, 0))
        grad_NE[:, :-1] -= lifted_NS * share_N1 * below_NE[:, :-1]
        width_N1 = 2 / self.num_states * sharpness_N1
        to_mean_N1 = grad_NE.sum(1, keepdim=True) * sharpness_N1
        to_scale_N1 = (grad_NE * edges_NE).sum(1, keepdim=True)
        to_scale_N1 += lifted_NS.sum(1, keepdim=True) * width_N1 * (-width_N1).exp()
        return -torch.cat([to_mean_N1, to_scale_N1], 1).to(features_NH.dtype)

    def _log_lifted(self, log_tail_NS: Float[Tensor, "N S"], bins: _Bins) -> Float[Tensor, "N S"]:
        return torch.log(log_tail_NS.exp() * bins.share_N1 + self.lift)

    def _bins(self, features_NH: Float[Tensor, "N 2"]) -> _Bins:
        wide = features_NH.to(widest(features_NH.dtype))
        mean_N1, log_scale_N1 = wide[:, :1], wide[:, 1:]
        edge_E = torch.linspace(-1, 1, self.num_states + 1, dtype=wide.dtype, device=wide.device)
        sharpness_N1 = (_SCALE_SHIFT - log_scale_N1).exp()
        share_N1 = -torch.expm1(-2 / self.num_states * sharpness_N1)
        return _Bins((edge_E - mean_N1) * sharpness_N1, sharpness_N1, share_N1)


@final
@dataclass(frozen=True)
class AddedLogits(WrappedHead):
    """`inner`, and what is added to its logits: the last S of the features."""

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """See `OutputHead.logits`."""
        own_NH, added_NS = features_NH[:, : -self.num_states], features_NH[:, -self.num_states :]
        return self.inner.logits(own_NH, positions_N) + added_NS

    def vjp(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N H"]:
        """See `OutputHead.vjp`."""
        added_NS = grad_NS.to(features_NH.dtype, copy=True)
        own_NH = self.inner.vjp(features_NH[:, : -self.num_states], positions_N, grad_NS, parameter_grads)
        return torch.cat([own_NH.to(features_NH.dtype), added_NS], 1)
