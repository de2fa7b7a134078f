"""The divergences of SDTT (Deschenaux and Gulcehre 2025, section 3 and appendix B) from a factored prediction, unreduced.

For the student's distribution p and the teacher's q at one position, over the states Ω that can be (MASK cannot):

    kl_forward   = Σ_v q(v) (log q(v) - log p(v))
    kl_backward  = Σ_v p(v) (log p(v) - log q(v))        Eq. 9, the paper's KLD
    tv           = 1/2 Σ_v |p(v) - q(v)|                 Eq. 10
    mse          = 1/|Ω| Σ_v (log p(v) - log q(v))²      Eq. 11: of log-probabilities

As in `losses.reading`, each pass goes once over the positions in chunks and reads them again in the backward pass, so that of the
student nothing of shape (positions, S) is ever held.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from di4c_lm.processes.denoiser import OutputHead, row_chunks, rows_at_once, widest
from di4c_lm.processes.masked import NEVER

DivergenceName = Literal["kl_backward", "kl_forward", "mse", "tv"]


def sdtt_divergence(
    name: DivergenceName,
    features: Float[Tensor, "M H"],
    positions: Int64[Tensor, " M"],
    output_head: OutputHead,
    teacher_log_p: Float[Tensor, "M S"],
    *,
    chunk_rows: int = 0,
) -> Float[Tensor, " M"]:
    """δ(student, teacher) at each of M positions: in nats for the KLs, in [0, 1] for `tv`; sums over S in at least float32.

    `teacher_log_p` are normalised log-probabilities without gradient; a state below -5e5 there cannot be (MASK, by SUBS). Differentiable
    with respect to `features` and the output head's parameters. Memory: O(M·H + M·S of the teacher + chunk_rows·S).
    """
    plan = _Plan(name, output_head, positions, teacher_log_p, chunk_rows)
    return _ReadDivergence.apply(plan, features, *output_head.parameters)


@dataclass(frozen=True)
class _Plan:
    name: DivergenceName
    output_head: OutputHead
    positions: Int64[Tensor, " M"]
    teacher_log_p: Float[Tensor, "M S"]
    chunk_rows: int

    def chunks(self) -> Iterator[slice]:
        return row_chunks(len(self.positions), rows_at_once(self.output_head, self.chunk_rows))

    def distributions(
        self, features_MH: Tensor, chunk: slice
    ) -> tuple[Float[Tensor, "C S"], Float[Tensor, "C S"], Bool[Tensor, "C S"]]:
        """log p, log q and which states can be; log p is fresh and may be used up."""
        log_p_CS = self.output_head.logits(features_MH[chunk], self.positions[chunk]).log_softmax(1)
        log_q_CS = self.teacher_log_p[chunk].to(log_p_CS.dtype)
        return log_p_CS, log_q_CS, log_q_CS > NEVER / 2


class _ReadDivergence(torch.autograd.Function):
    """The pass of `sdtt_divergence`. Saved: features, parameters and the teacher's distributions."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, features_MH: Tensor, *parameters: Tensor) -> Tensor:
        options = {"dtype": widest(features_MH.dtype), "device": features_MH.device}
        value_M = torch.empty(len(features_MH), **options)
        for chunk in plan.chunks():
            value_M[chunk] = _value(plan.name, *plan.distributions(features_MH, chunk))
        ctx.plan = plan
        ctx.save_for_backward(features_MH, *parameters)
        return value_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        features_MH, *parameters = ctx.saved_tensors
        features_grad_MH = torch.empty_like(features_MH)
        parameter_grads = [
            torch.zeros_like(p, dtype=widest(p.dtype)) if needed else None
            for p, needed in zip(parameters, ctx.needs_input_grad[2:], strict=True)
        ]
        for chunk in plan.chunks():
            grad_CS = _logit_gradient(plan.name, *plan.distributions(features_MH, chunk)).mul_(grads[0][chunk, None])
            features_grad_MH[chunk] = plan.output_head.vjp(
                features_MH[chunk], plan.positions[chunk], grad_CS, parameter_grads
            )
        cast = [None if g is None else g.to(p.dtype) for g, p in zip(parameter_grads, parameters, strict=True)]
        return None, features_grad_MH, *cast


def _value(name: DivergenceName, log_p_CS: Tensor, log_q_CS: Tensor, can_be_CS: Tensor) -> Float[Tensor, " C"]:
    gap_CS = (log_p_CS - log_q_CS).masked_fill_(~can_be_CS, 0)
    if name == "kl_forward":
        return _relative_entropy(log_q_CS.exp(), log_p_CS.exp(), -gap_CS)
    if name == "kl_backward":
        return _relative_entropy(log_p_CS.exp(), log_q_CS.exp(), gap_CS)
    if name == "tv":
        return (log_p_CS.exp() - log_q_CS.exp()).abs().sum(1) / 2
    return gap_CS.square().sum(1) / can_be_CS.sum(1)


def _relative_entropy(
    a_CS: Float[Tensor, "C S"], b_CS: Float[Tensor, "C S"], gap_CS: Float[Tensor, "C S"]
) -> Float[Tensor, " C"]:
    """KL(a ‖ b) as Σ_v a gap - a + b, gap = log a - log b: no term is negative, and where a is near b none is lost to rounding."""
    near_CS = a_CS * (gap_CS + torch.expm1(-gap_CS))
    return torch.where(gap_CS.abs() < 1, near_CS, a_CS * gap_CS - a_CS + b_CS).sum(1)


def _logit_gradient(
    name: DivergenceName, log_p_CS: Tensor, log_q_CS: Tensor, can_be_CS: Tensor
) -> Float[Tensor, "C S"]:
    """d δ / d logits. Through the softmax, a derivative a(v) with respect to log p(v) becomes a(v) - p(v) Σ_w a(w)."""
    p_CS = log_p_CS.exp()
    if name == "kl_forward":
        return p_CS - log_q_CS.exp()
    if name == "tv":
        by_log_p_CS = p_CS * (p_CS - log_q_CS.exp()).sign() / 2
    else:
        gap_CS = (log_p_CS - log_q_CS).masked_fill_(~can_be_CS, 0)
        # d/d log p of Σ p gap is p (gap + 1); the 1 vanishes through the softmax.
        by_log_p_CS = p_CS * gap_CS if name == "kl_backward" else 2 * gap_CS / can_be_CS.sum(1, keepdim=True)
    return by_log_p_CS - p_CS * by_log_p_CS.sum(1, keepdim=True)
