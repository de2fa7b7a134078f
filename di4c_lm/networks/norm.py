"""Layer norm and modulation in one, so that of both only the input is kept for the backward pass."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_EPS = 1e-5


def modulated_norm(
    x: Float[Tensor, "N P H"], shift: Float[Tensor, "M Q H"], scale: Float[Tensor, "M Q H"]
) -> Float[Tensor, "N P H"]:
    """shift + scale (x - mean) / sqrt(var + 1e-5) over the last axis; `shift` and `scale` broadcast, in the dtype to compute in."""
    return _ModulatedNorm.apply(x, shift, scale)


class _ModulatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normal, mean, rstd = torch.native_layer_norm(x.to(scale.dtype), x.shape[-1:], None, None, _EPS)
        ctx.save_for_backward(x, shift, scale, mean, rstd)
        return torch.addcmul(shift, normal, scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, shift, scale, mean, rstd = ctx.saved_tensors
        wide, grad = x.to(scale.dtype), grads[0].to(scale.dtype)
        normal = (wide - mean).mul_(rstd)
        grad_scale = normal.mul_(grad).sum_to_size(scale.shape)
        grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad * scale, wide, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )
        return grad_x.to(x.dtype), grad.sum_to_size(shift.shape), grad_scale
