"""The masked transformer on image codes of MaskGIT-pytorch (Besnier and Chen 2023), under the published names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import check, positive, section, setting
from di4c_lm.networks.base import BlockStages, Drive, Network, Rows, attend, product, refuse_latents, use_flash
from di4c_lm.processes.denoiser import NO_CLASS, OutputHead, product_with_rows, widest
from di4c_lm.processes.masked import NEVER

_OUTER_EPS = 1e-12  # of the norms before and after the blocks
_INIT_STD = 0.02


@section
class MaskGitConfig:
    """The transformer of MaskGIT-pytorch (Besnier and Chen 2023); the defaults are the published teacher's."""

    hidden_size: int = setting(768, "width of the residual stream")
    num_blocks: int = setting(24, "blocks of attention and MLP")
    num_heads: int = setting(16, "heads of the attention")
    mlp_size: int = setting(3072, "width inside the MLP")
    dropout: float = setting(0.1, "share of the activations, and of the attention's weights, dropped in training")
    attention: Literal["auto", "sdpa", "flash"] = setting(
        "auto", "kernel of the attention; auto: flash where it is installed"
    )
    mask_state: bool = setting(
        False, "leave MASK a share of each prediction, as the published code does; else its probability is 0"
    )

    def __post_init__(self) -> None:
        positive(self, "hidden_size", "num_blocks", "num_heads", "mlp_size")
        allowed = f"a multiple of num_heads = {self.num_heads}"
        check(self.hidden_size % self.num_heads == 0, "hidden_size", self.hidden_size, allowed)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.num_blocks

    @property
    def time_conditioning(self) -> bool:
        """False: the number of MASKs tells the time."""
        return False


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


class MaskGit(Network):
    """p(x_0 | x_t, class) as a product of positions, factored: features and the tied output head.

    Codes are 0 to K - 1, MASK is K, the class of a sequence is one more token behind its D codes.
    """

    def __init__(self, model: MaskGitConfig, *, num_codes: int, num_classes: int, length: int) -> None:
        super().__init__()
        for name, value in (("num_codes", num_codes), ("num_classes", num_classes), ("length", length)):
            check(value >= 1, name, value, "at least 1")
        self.config = model
        self.num_codes, self.num_classes, self.length = num_codes, num_classes, length
        self.num_states = num_codes + 1  # S: the codes and MASK
        width, num_tokens = model.hidden_size, num_codes + 1 + num_classes + 1
        self.tok_emb = nn.Embedding(num_tokens, width)
        self.pos_emb = nn.Parameter(torch.empty(1, length + 1, width))
        self.first_layer = outer_layer(width, model.dropout)
        self.first_layer.append(nn.Dropout(model.dropout)).append(nn.Linear(width, width))
        self.transformer = Transformer(model)
        self.last_layer = outer_layer(width, model.dropout)
        self.bias = nn.Parameter(torch.zeros(length + 1, num_tokens))
        for weight in (self.tok_emb.weight, self.pos_emb):
            nn.init.trunc_normal_(weight, std=_INIT_STD)

    @property
    def mask_id(self) -> int:
        """K."""
        return self.num_codes

    @property
    def sizes(self) -> dict[str, Any]:
        """See `Network.sizes`."""
        return {"num_codes": self.num_codes, "num_classes": self.num_classes, "length": self.length}

    @property
    def width(self) -> int:
        """H."""
        return self.config.hidden_size

    def forward(
        self,
        x_t: Int64[Tensor, "B D"],
        t: Float[Tensor, " B"],
        lam: object = None,
        cond: Int64[Tensor, " B"] | None = None,
        *,
        drive: Drive = product,
        share: bool = False,
    ) -> Rows:
        """See `Network.forward`; the time is not read. A class of -1, or no `cond`, hides the class.

        Raises `ValueError` for a class or a length out of range.
        """
        refuse_latents(lam)
        return drive(MaskGitStages(self, x_t, cond, share=share))

    def output_head(self) -> TiedHead:
        """The token embedding once more, with the bias of each position."""
        impossible = None if self.config.mask_state else self.mask_id
        return TiedHead(
            self.tok_emb.weight, self.bias, self.num_states, impossible=impossible, matmul_dtype=self.matmul_dtype
        )

    def class_tokens(self, x_t: Int64[Tensor, "B D"], cond: Tensor | None) -> Int64[Tensor, " B"]:
        """The token of each sequence's class. Raises `ValueError` for a class or a length out of range."""
        if x_t.shape[1] != self.length:
            raise ValueError(f"x_t must have {self.length} codes a sequence, got {x_t.shape[1]}")
        hidden = self.num_codes + 1 + self.num_classes
        if cond is None:
            return torch.full_like(x_t[:, 0], hidden)
        check_classes(cond, self.num_classes)
        return torch.where(cond == NO_CLASS, hidden, self.num_codes + 1 + cond)


class MaskGitStages(BlockStages):
    """A pass of `MaskGit`."""

    def __init__(self, network: MaskGit, x_t: Int64[Tensor, "B D"], cond: Tensor | None, *, share: bool) -> None:
        unknown, row_B = x_t == network.mask_id, None
        x_t = torch.cat([x_t, network.class_tokens(x_t, cond)[:, None]], 1)
        if share and network.may_share():
            x_t, row_B = x_t.unique(dim=0, return_inverse=True)
        super().__init__(network, unknown, row_B)
        self._maskgit = network
        self.x = network.tok_emb(x_t) + network.pos_emb

    def _enter(self) -> None:
        self.x = self._maskgit.first_layer(self.x)

    def _block(self, index: int, shift_scale: Tensor | None) -> None:
        self.x = self._maskgit.run(self._at(index), self.x, shift_scale)

    def _attention(self, index: int) -> None:
        self.x = self._maskgit.run(self._at(index).mix, self.x)

    def _mlp(self, index: int, shift_scale: Tensor) -> None:
        self.x = self._maskgit.run(self._at(index).feed, self.x, shift_scale)

    def _features(self, shift_scale: Tensor | None) -> Tensor:
        features = self._maskgit.last_layer(self.x[:, : self.num_positions])
        if shift_scale is None:
            return features
        shift, scale = shift_scale.chunk(2, dim=2)
        return features * (1 + scale) + shift

    def _at(self, index: int) -> "Block":
        return cast(Block, self._maskgit.transformer.layers[index])


def check_classes(labels: Int64[Tensor, " B"], num_classes: int) -> None:
    """Raise `ValueError` unless each label is a class, or -1 for none."""
    wrong = labels[(labels < NO_CLASS) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"class must be 0 to {num_classes - 1}, or {NO_CLASS} for none, got {int(wrong[0])}")


class Heads(nn.Module):
    """Self-attention of several heads, under the names of `nn.MultiheadAttention`."""

    def __init__(self, model: MaskGitConfig) -> None:
        super().__init__()
        self.config = model
        width = model.hidden_size
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Float[Tensor, "N P H"]) -> Float[Tensor, "N P H"]:
        """Attention over all P places; in training, dropout on its weights."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.config.num_heads, -1).unbind(2)
        flash = use_flash(self.config.attention) if x.is_cuda else False
        dropout = self.config.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, flash=flash, dropout=dropout).flatten(2))


class Attention(nn.Module):
    """The heads, under their published name."""

    def __init__(self, model: MaskGitConfig) -> None:
        super().__init__()
        self.mha = Heads(model)

    def forward(self, x: Float[Tensor, "N P H"]) -> Float[Tensor, "N P H"]:
        """As `Heads`."""
        return self.mha(x)


class FeedForward(nn.Module):
    """Two layers with the exact GELU."""

    def __init__(self, model: MaskGitConfig) -> None:
        super().__init__()
        width, inner, dropout = model.hidden_size, model.mlp_size, model.dropout
        self.net = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width), nn.Dropout(dropout)
        )

    def forward(self, x: Float[Tensor, "N P H"]) -> Float[Tensor, "N P H"]:
        """Place by place."""
        return self.net(x)


class PreNorm(nn.Module):
    """`fn` of the norm of x, which may be scaled and shifted."""

    def __init__(self, width: int, fn: Attention | FeedForward) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(
        self, x: Float[Tensor, "N P H"], shift: Float[Tensor, "N Q H"] | None, scale: Float[Tensor, "N Q H"] | None
    ) -> Float[Tensor, "N P H"]:
        """fn(norm x), or fn((1 + scale) norm x + shift)."""
        normed = self.norm(x)
        return self.fn(normed if shift is None or scale is None else normed * (1 + scale) + shift)


class Block(nn.ModuleList):
    """x + attention, then x + feed-forward, each behind a norm that may be scaled and shifted."""

    def __init__(self, model: MaskGitConfig) -> None:
        width = model.hidden_size
        super().__init__([PreNorm(width, Attention(model)), PreNorm(width, FeedForward(model))])

    def forward(
        self, x: Float[Tensor, "N P H"], shift_scale: Float[Tensor, "N fourH"] | None
    ) -> Float[Tensor, "N P H"]:
        """The residual stream after this block."""
        halves = (None, None) if shift_scale is None else shift_scale[:, None].chunk(2, dim=2)
        return self.feed(self.mix(x, halves[0]), halves[1])

    def mix(
        self, x: Float[Tensor, "N P H"], shift_scale: Float[Tensor, "N Q twoH"] | None = None
    ) -> Float[Tensor, "N P H"]:
        """The block's first half, attention over the places."""
        shift, scale = (None, None) if shift_scale is None else shift_scale.chunk(2, dim=2)
        return x + self[0](x, shift, scale)

    def feed(
        self, x: Float[Tensor, "N P H"], shift_scale: Float[Tensor, "N Q twoH"] | None = None
    ) -> Float[Tensor, "N P H"]:
        """The block's second half, each place by itself."""
        shift, scale = (None, None) if shift_scale is None else shift_scale.chunk(2, dim=2)
        return x + self[1](x, shift, scale)


class Transformer(nn.Module):
    """Holds the blocks under their published name."""

    def __init__(self, model: MaskGitConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(model) for _ in range(model.num_blocks))


def outer_layer(width: int, dropout: float) -> nn.Sequential:
    """What stands before the blocks and behind them: a linear map between two norms."""
    return nn.Sequential(
        nn.LayerNorm(width, eps=_OUTER_EPS),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.GELU(),
        nn.LayerNorm(width, eps=_OUTER_EPS),
    )
