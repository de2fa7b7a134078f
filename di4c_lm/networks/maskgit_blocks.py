"""The parts of MaskGIT's transformer, under their published names."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.domains.codes.settings import MaskGitConfig
from di4c_lm.networks.attention import attend, use_flash

_OUTER_EPS = 1e-12  # of the norms before and after the blocks


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
    """x + attention, then x + feed-forward, each behind a norm that λ may scale and shift."""

    def __init__(self, model: MaskGitConfig) -> None:
        width = model.hidden_size
        super().__init__([PreNorm(width, Attention(model)), PreNorm(width, FeedForward(model))])

    def forward(
        self, x: Float[Tensor, "N P H"], latent_shift_scale: Float[Tensor, "N fourH"] | None
    ) -> Float[Tensor, "N P H"]:
        """The residual stream after this block."""
        halves = (None, None) if latent_shift_scale is None else latent_shift_scale[:, None].chunk(2, dim=2)
        return self.feed(self.mix(x, halves[0]), halves[1])

    def mix(
        self, x: Float[Tensor, "N P H"], latent_shift_scale: Float[Tensor, "N Q twoH"] | None = None
    ) -> Float[Tensor, "N P H"]:
        """The block's first half, attention over the places."""
        shift, scale = (None, None) if latent_shift_scale is None else latent_shift_scale.chunk(2, dim=2)
        return x + self[0](x, shift, scale)

    def feed(
        self, x: Float[Tensor, "N P H"], latent_shift_scale: Float[Tensor, "N Q twoH"] | None = None
    ) -> Float[Tensor, "N P H"]:
        """The block's second half, each place by itself."""
        shift, scale = (None, None) if latent_shift_scale is None else latent_shift_scale.chunk(2, dim=2)
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
