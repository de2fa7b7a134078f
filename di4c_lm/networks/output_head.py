"""Output heads: features of some positions to logits."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.processes.denoiser import OutputHead, widest
from di4c_lm.processes.masked import NEVER

_BLOCK = 2**13  # states whose products are held at once in a dtype narrower than the logits'


@final
@dataclass(frozen=True)
class LinearHead(OutputHead):
    """logits = W h + b. State `impossible`, where given, has probability 0; products run in `matmul_dtype` where given."""

    weight_SH: Float[Tensor, "S H"]
    bias_S: Float[Tensor, " S"] | None = None
    impossible: int | None = None
    matmul_dtype: torch.dtype | None = None
    _casts: dict[torch.dtype, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_states(self) -> int:
        """S."""
        return self.weight_SH.shape[0]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The weight, and the bias where there is one."""
        return (self.weight_SH,) if self.bias_S is None else (self.weight_SH, self.bias_S)

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """W h + b, in at least float32."""
        product_NS = self._product(features_NH)
        if self.bias_S is not None:
            product_NS = product_NS + self.bias_S if product_NS.requires_grad else product_NS.add_(self.bias_S)
        if self.impossible is None:
            return product_NS
        if product_NS.requires_grad:
            return product_NS.index_fill(1, torch.tensor([self.impossible], device=product_NS.device), NEVER)
        product_NS[:, self.impossible] = NEVER
        return product_NS

    def vjp(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N H"]:
        """grad W for the features; grad^T h for the weight, the column sums for the bias. `grad_NS` may be changed."""
        if self.impossible is not None:
            grad_NS[:, self.impossible] = 0
        weight_SH = self._weight_for(features_NH)
        if len(parameter_grads) > 1 and parameter_grads[1] is not None:
            parameter_grads[1].add_(grad_NS.sum(0))
        if weight_SH.dtype == grad_NS.dtype:
            if parameter_grads[0] is not None:
                parameter_grads[0].addmm_(grad_NS.T, features_NH.to(grad_NS.dtype))
            return (grad_NS @ weight_SH).to(features_NH.dtype)
        narrow_NH = features_NH.to(weight_SH.dtype)
        total_NH = torch.zeros_like(features_NH, dtype=grad_NS.dtype)
        for states in self._blocks():
            narrow_NK = grad_NS[:, states].to(weight_SH.dtype)
            total_NH += narrow_NK @ weight_SH[states]
            if parameter_grads[0] is not None:
                parameter_grads[0][states] += narrow_NK.T @ narrow_NH
        return total_NH.to(features_NH.dtype)

    def target_logits(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        targets_NT: Int64[Tensor, "N T"],
    ) -> Float[Tensor, "N T"]:
        """Of T rows of W alone."""
        logit_NT = product_with_rows(self.weight_SH, features_NH, targets_NT)
        if self.bias_S is not None:
            logit_NT = logit_NT + self.bias_S[targets_NT].to(logit_NT.dtype)
        return logit_NT if self.impossible is None else logit_NT.masked_fill(targets_NT == self.impossible, NEVER)

    def _product(self, features_NH: Float[Tensor, "N H"]) -> Float[Tensor, "N S"]:
        """W h; in a narrower dtype block by block of states, so that the narrow product is never held whole."""
        weight_SH, wide = self._weight_for(features_NH), widest(features_NH.dtype)
        narrow_NH = features_NH.to(weight_SH.dtype)
        if weight_SH.dtype == wide or torch.is_grad_enabled():
            return F.linear(narrow_NH, weight_SH).to(wide)
        product_NS = torch.empty(len(features_NH), self.num_states, dtype=wide, device=features_NH.device)
        for states in self._blocks():
            product_NS[:, states] = F.linear(narrow_NH, weight_SH[states])
        return product_NS

    def _blocks(self) -> list[slice]:
        return [slice(start, start + _BLOCK) for start in range(0, self.num_states, _BLOCK)]

    def _weight_for(self, features_NH: Float[Tensor, "N H"]) -> Float[Tensor, "S H"]:
        """The weight in the dtype of the products; cast once for all chunks where no gradient is recorded."""
        dtype = self.matmul_dtype or features_NH.dtype
        if self.weight_SH.dtype == dtype or torch.is_grad_enabled():
            return self.weight_SH.to(dtype)
        if dtype not in self._casts:
            self._casts[dtype] = self.weight_SH.to(dtype)
        return self._casts[dtype]


def product_with_rows(
    weight_SH: Float[Tensor, "S H"], features_NH: Float[Tensor, "N H"], rows_NT: Int64[Tensor, "N T"]
) -> Float[Tensor, "N T"]:
    """The products of each row of features with T rows of the weight, in at least float32."""
    wide = widest(features_NH.dtype)
    return (F.embedding(rows_NT, weight_SH).to(wide) @ features_NH.to(wide)[..., None])[..., 0]


def vjp_by_autograd(
    output_head: OutputHead,
    features_NH: Float[Tensor, "N H"],
    positions_N: Int64[Tensor, " N"],
    grad_NS: Float[Tensor, "N S"],
    parameter_grads: Sequence[Tensor | None],
) -> Float[Tensor, "N H"]:
    """`OutputHead.vjp` for a output head with no closed form: the logits are made once more under autograd."""
    leaf_NH = features_NH.detach().requires_grad_()
    wanted = [(p, g) for p, g in zip(output_head.parameters, parameter_grads, strict=True) if g is not None]
    with torch.enable_grad():
        logits_NS = output_head.logits(leaf_NH, positions_N)
        grads = torch.autograd.grad(logits_NS, [leaf_NH, *(p for p, _ in wanted)], grad_NS)
    for (_, total), grad in zip(wanted, grads[1:], strict=True):
        total.add_(grad)
    return grads[0]
