"""The parts of the diffusion transformer, under their published names."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.networks.attention import attend, rotate
from di4c_lm.networks.norm import modulated_norm
from di4c_lm.processes.denoiser import widest


class LayerNorm(nn.Module):
    """Layer norm with a weight and no bias, scaled and shifted from outside (adaLN), computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(
        self, x: Float[Tensor, "N P H"], shift: Float[Tensor, "M Q H"], scale: Float[Tensor, "M Q H"]
    ) -> Float[Tensor, "N P H"]:
        """(x - mean) / sqrt(var + 1e-5) * weight * (1 + scale) + shift."""
        wide = widest(x.dtype)
        return modulated_norm(x, shift.to(wide), self.weight.to(wide) * (1 + scale.to(wide)))


class EmbeddingLayer(nn.Module):
    """Token embedding, under the published name."""

    def __init__(self, num_states: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_states, width))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, x: Int64[Tensor, "B D"]) -> Float[Tensor, "B D H"]:
        """Rows of the table."""
        return F.embedding(x, self.embedding)


class TimestepEmbedder(nn.Module):
    """sigma to [cos(sigma f_k), sin(sigma f_k)], f_k = 10000^(-k/128), then a two-layer MLP."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Float[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """The embedding, before the SiLU that the modulations put in front."""
        half = self.frequencies // 2
        frequency = torch.exp(torch.arange(half, device=sigma.device) * (-math.log(10_000) / half))
        phase = sigma.float()[:, None] * frequency
        return self.mlp(torch.cat([phase.cos(), phase.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


class DDiTBlock(nn.Module):
    """Attention and MLP, each behind a norm that the noise level, and perhaps λ, scales and shifts."""

    def __init__(self, width: int, num_heads: int, cond_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm1 = LayerNorm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = nn.Linear(cond_dim, 6 * width)
        nn.init.zeros_(self.adaLN_modulation.weight)
        nn.init.zeros_(self.adaLN_modulation.bias)

    def forward(
        self,
        x: Float[Tensor, "N P H"],
        cond: Float[Tensor, "M C"],
        cos: Tensor,
        sin: Tensor,
        latent_shift_scale: Float[Tensor, "N fourH"] | None,
        flash: bool,  # noqa: FBT001 (checkpointing passes it by position)
    ) -> Float[Tensor, "N P H"]:
        """The residual stream after this block; M is 1 or N."""
        if latent_shift_scale is None:
            return self.feed(self.mix(x, cond, cos, sin, None, flash), cond, None)
        first, second = latent_shift_scale[:, None].chunk(2, dim=2)
        return self.feed(self.mix(x, cond, cos, sin, first, flash), cond, second)

    def mix(
        self,
        x: Float[Tensor, "N P H"],
        cond: Float[Tensor, "M C"],
        cos: Tensor,
        sin: Tensor,
        latent_shift_scale: Float[Tensor, "N 1 twoH"] | None,
        flash: bool,  # noqa: FBT001 (checkpointing passes it by position)
    ) -> Float[Tensor, "N P H"]:
        """The block's first half, attention."""
        shift_1, scale_1, gate_1, *_ = self._modulation(cond, latent_shift_scale, slice(0, 3))
        qkv = self.attn_qkv(self.norm1(x, shift_1, scale_1))
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.num_heads, -1).unbind(2)
        # A copy of v, so that q and k unrotated are not kept for the backward pass.
        mixed = attend(rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous(), flash=flash)
        return x + gate_1 * self._drop(self.attn_out(mixed.flatten(2)))

    def feed(
        self,
        x: Float[Tensor, "N P H"],
        cond: Float[Tensor, "M C"],
        latent_shift_scale: Float[Tensor, "N Q twoH"] | None,
    ) -> Float[Tensor, "N P H"]:
        """The block's second half, the MLP, each position by itself."""
        shift_2, scale_2, gate_2 = self._modulation(cond, latent_shift_scale, slice(3, 6))
        return x + gate_2 * self._drop(self.mlp(self.norm2(x, shift_2, scale_2)))

    def _modulation(self, cond: Tensor, latent_shift_scale: Tensor | None, half: slice) -> list[Tensor]:
        """Shift, scale and gate of one half, λ's part added to the first two."""
        shift, scale, gate = self.adaLN_modulation(cond)[:, None].chunk(6, dim=2)[half]
        if latent_shift_scale is not None:
            extra_shift, extra_scale = latent_shift_scale.chunk(2, dim=2)
            shift, scale = shift + extra_shift, scale + extra_scale
        return [shift, scale, gate]

    def _drop(self, x: Float[Tensor, "N P H"]) -> Float[Tensor, "N P H"]:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class DDitFinalLayer(nn.Module):
    """The last norm, and the linear output head that `Prediction` carries."""

    def __init__(self, width: int, num_states: int, cond_dim: int) -> None:
        super().__init__()
        self.norm_final = LayerNorm(width)
        self.linear = nn.Linear(width, num_states)
        self.adaLN_modulation = nn.Linear(cond_dim, 2 * width)
        for parameter in (*self.linear.parameters(), *self.adaLN_modulation.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Float[Tensor, "N P H"],
        cond: Float[Tensor, "M C"],
        latent_shift_scale: Float[Tensor, "N Q twoH"] | None = None,
    ) -> Float[Tensor, "N P H"]:
        """Features: what the linear map is applied to."""
        shift, scale = self.adaLN_modulation(cond)[:, None].chunk(2, dim=2)
        if latent_shift_scale is not None:
            extra_shift, extra_scale = latent_shift_scale.chunk(2, dim=2)
            shift, scale = shift + extra_shift, scale + extra_scale
        return self.norm_final(x, shift, scale)
