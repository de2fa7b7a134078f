"""The masked transformer on image codes of MaskGIT-pytorch (Besnier and Chen 2023), under the published names."""

from collections import OrderedDict
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import check, positive, section, setting
from di4c_lm.networks.base import BlockStages, Network, TransformerBlock, attend, use_flash
from di4c_lm.processes.denoiser import NO_CLASS, LinearHead

_OUTER_EPS = 1e-12  # of the norms before and after the blocks
_INIT_STD = 0.02


@section
class MaskGitConfig:
    """The transformer of MaskGIT-pytorch (Besnier and Chen 2023); the defaults are the published teacher's."""

    hidden_size: int = setting(768, "width of the residual stream")
    num_blocks: int = setting(24, "blocks of attention and MLP")
    num_heads: int = setting(16, "attention heads")
    mlp_size: int = setting(3072, "width inside the MLP")
    dropout: float = setting(0.1, "share of the activations, and of the attention's weights, dropped in training")
    attention: Literal["auto", "sdpa", "flash"] = setting(
        "auto", "attention kernel; auto: flash-attn where it is installed, else PyTorch's own"
    )
    mask_state: bool = setting(
        False, "let MASK have probability in a prediction, as the published code does; else it has none"
    )
    time_conditioning: ClassVar[bool] = False  # the number of MASKs tells the time

    def __post_init__(self) -> None:
        positive(self, "hidden_size", "num_blocks", "num_heads", "mlp_size")
        allowed = f"a multiple of num_heads = {self.num_heads}"
        check(self.hidden_size % self.num_heads == 0, "hidden_size", self.hidden_size, allowed)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.num_blocks


class MaskGit(Network):
    """p(x_0 | x_t, class) as a product of positions, factored: features and the tied output head.

    Codes are 0 to K - 1, MASK is K, the class of a sequence is one more token behind its D codes; a class of -1, or none, hides it. The
    time is not read.
    """

    def __init__(self, model: MaskGitConfig, *, num_codes: int, num_classes: int, length: int) -> None:
        super().__init__()
        for name, value in (("num_codes", num_codes), ("num_classes", num_classes), ("length", length)):
            check(value >= 1, name, value, "at least 1")
        self.config = model
        self.sizes = {"num_codes": num_codes, "num_classes": num_classes, "length": length}
        self.num_codes, self.num_classes, self.length = num_codes, num_classes, length
        self.num_states, self.mask_id = num_codes + 1, num_codes  # S: the codes and MASK
        self.width = width = model.hidden_size
        num_tokens = num_codes + 1 + num_classes + 1
        self.tok_emb = nn.Embedding(num_tokens, width)
        self.pos_emb = nn.Parameter(torch.empty(1, length + 1, width))
        self.first_layer = outer_layer(width, model.dropout)
        self.first_layer.append(nn.Dropout(model.dropout)).append(nn.Linear(width, width))
        self.transformer = nn.ModuleDict({"layers": nn.ModuleList(Block(model) for _ in range(model.num_blocks))})
        self.last_layer = outer_layer(width, model.dropout)
        self.bias = nn.Parameter(torch.zeros(length + 1, num_tokens))
        for weight in (self.tok_emb.weight, self.pos_emb):
            nn.init.trunc_normal_(weight, std=_INIT_STD)

    def stages(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], cond: Int64[Tensor, " B"] | None, *, share: bool
    ) -> "MaskGitStages":
        """See `Network.stages`. Raises `ValueError` for a class or a length out of range."""
        return MaskGitStages(self, x_t, cond, share=share)

    def output_head(self) -> LinearHead:
        """The token embedding once more, with the bias of each position."""
        impossible = None if self.config.mask_state else self.mask_id
        states = self.num_states
        return LinearHead(self.tok_emb.weight, self.bias, impossible, self.matmul_dtype, first_rows=states)

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
        super().__init__(network, network.transformer.get_submodule("layers"), unknown, row_B)
        self.x = network.tok_emb(x_t) + network.pos_emb

    def _enter(self) -> None:
        self.x = self.network.first_layer(self.x)

    def _features(self, shift_scale: Tensor | None) -> Tensor:
        return modulated(self.network.last_layer(self.x[:, : self.num_positions]), shift_scale)


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


class PreNorm(nn.Module):
    """`fn` of the norm of x, which may be scaled and shifted."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(
        self, x: Float[Tensor, "N P H"], shift_scale: Float[Tensor, "N Q twoH"] | None
    ) -> Float[Tensor, "N P H"]:
        """fn(norm x), or fn((1 + scale) norm x + shift)."""
        return self.fn(modulated(self.norm(x), shift_scale))


class Block(nn.ModuleList, TransformerBlock):
    """x + attention, then x + two layers with the exact GELU, each behind a norm that may be scaled and shifted."""

    def __init__(self, model: MaskGitConfig) -> None:
        width, inner, dropout = model.hidden_size, model.mlp_size, model.dropout
        attention = PreNorm(width, nn.Sequential(OrderedDict(mha=Heads(model))))
        layers = nn.Sequential(
            nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width), nn.Dropout(dropout)
        )
        super().__init__([attention, PreNorm(width, nn.Sequential(OrderedDict(net=layers)))])

    def mix(self, x: Float[Tensor, "N P H"], shift_scale: Float[Tensor, "N Q twoH"] | None) -> Float[Tensor, "N P H"]:
        """The block's first half, attention over the places."""
        return x + self[0](x, shift_scale)

    def feed(self, x: Float[Tensor, "N P H"], shift_scale: Float[Tensor, "N Q twoH"] | None) -> Float[Tensor, "N P H"]:
        """The block's second half, each place by itself."""
        return x + self[1](x, shift_scale)


def modulated(x: Float[Tensor, "N P H"], shift_scale: Float[Tensor, "N Q twoH"] | None) -> Float[Tensor, "N P H"]:
    """x, or (1 + scale) x + shift."""
    if shift_scale is None:
        return x
    shift, scale = shift_scale.chunk(2, dim=2)
    return x * (1 + scale) + shift


def outer_layer(width: int, dropout: float) -> nn.Sequential:
    """What stands before the blocks and behind them: a linear map between two norms."""
    return nn.Sequential(
        nn.LayerNorm(width, eps=_OUTER_EPS),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.GELU(),
        nn.LayerNorm(width, eps=_OUTER_EPS),
    )
