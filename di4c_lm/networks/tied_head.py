"""A output head that shares its weight with the token embedding and adds a bias of each position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from di4c_lm.networks.output_head import product_with_rows
from di4c_lm.processes.denoiser import OutputHead, widest
from di4c_lm.processes.masked import NEVER


@final
@dataclass(frozen=True)
class TiedHead(OutputHead):
    """logits = E h + b_d over the first `num_states` rows of E; the other rows embed what is no state (classes).

    State `impossible`, where given, has probability 0; products run in `matmul_dtype` where given.
    """

    embedding_TH: Float[Tensor, "T H"]
    bias_PT: Float[Tensor, "P T"]
    num_states: int
    impossible: int | None = None
    matmul_dtype: torch.dtype | None = None

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """The whole embedding and the whole bias."""
        return self.embedding_TH, self.bias_PT

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """E h + b at the positions, in at least float32."""
        wide = widest(features_NH.dtype)
        dtype = self.matmul_dtype or features_NH.dtype
        product_NS = F.linear(features_NH.to(dtype), self.embedding_TH[: self.num_states].to(dtype)).to(wide)
        product_NS = product_NS + self.bias_PT[:, : self.num_states].to(wide)[positions_N]
        if self.impossible is None:
            return product_NS
        return product_NS.index_fill(1, torch.tensor([self.impossible], device=product_NS.device), NEVER)

    def target_logits(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        targets_NT: Int64[Tensor, "N T"],
    ) -> Float[Tensor, "N T"]:
        """Of T rows of E alone."""
        logit_NT = product_with_rows(self.embedding_TH, features_NH, targets_NT)
        logit_NT = logit_NT + self.bias_PT[positions_N[:, None], targets_NT].to(logit_NT.dtype)
        return logit_NT if self.impossible is None else logit_NT.masked_fill(targets_NT == self.impossible, NEVER)

    def vjp(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N H"]:
        """grad E for the features; grad^T h for the rows that are states, sums by position for the bias. `grad_NS` may be changed."""
        if self.impossible is not None:
            grad_NS[:, self.impossible] = 0
        dtype = self.matmul_dtype or features_NH.dtype
        narrow_NS = grad_NS.to(dtype)
        embedding_grad, bias_grad = parameter_grads
        if embedding_grad is not None:
            embedding_grad[: self.num_states] += narrow_NS.T @ features_NH.to(dtype)
        if bias_grad is not None:
            _add_by_position(bias_grad[:, : self.num_states], positions_N, grad_NS)
        return (narrow_NS @ self.embedding_TH[: self.num_states].to(dtype)).to(features_NH.dtype)


def _add_by_position(
    total_PS: Float[Tensor, "P S"], positions_N: Int64[Tensor, " N"], grad_NS: Float[Tensor, "N S"]
) -> None:
    """total[position] += grad, as a product: in a fixed order on a GPU, and fast on a CPU."""
    touched_U, row_N = positions_N.unique(return_inverse=True)
    one_hot_UN = torch.zeros(len(touched_U), len(row_N), dtype=grad_NS.dtype, device=grad_NS.device)
    one_hot_UN[row_N, torch.arange(len(row_N), device=row_N.device)] = 1
    total_PS[touched_U] += (one_hot_UN @ grad_NS).to(total_PS.dtype)
