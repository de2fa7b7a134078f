"""The diffusion transformer of MDLM and SDTT (after Peebles and Xie 2023), and the mixture student made of it.

Parameters bear the names and shapes of the published checkpoints (without their `backbone.`). The student adds `latent_projection` (as
published) or `latent_codebook`, for λ by adaLN one `latent_modulation` a conditioned block, or, for λ behind all attention or behind the
output_head, `latent_head`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from di4c_lm.core.settings import check, positive, section, setting
from di4c_lm.mixtures.base import Chained
from di4c_lm.mixtures.class_head import ClassHead
from di4c_lm.mixtures.code_head import MixtureHead
from di4c_lm.mixtures.latent import (
    Uniform,
    check_latents,
    inject_block,
    latent_features,
    sample_latents,
)
from di4c_lm.mixtures.latent_path import latent_parts
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.attention import Rotary, attend, rotate, use_flash
from di4c_lm.networks.output_head import LinearHead
from di4c_lm.networks.prediction import Rows
from di4c_lm.processes.denoiser import Prediction, widest
from di4c_lm.processes.schedules import LogLinear

_EPS = 1e-5


@section
class DitConfig:
    """The DiT of MDLM and SDTT."""

    hidden_size: int = setting(192, "width of the residual stream")
    num_blocks: int = setting(4, "blocks of attention and MLP")
    num_heads: int = setting(4, "heads of the attention")
    cond_dim: int = setting(128, "width of the embedding of the noise level")
    dropout: float = setting(0.0, "share of the activations dropped in training")
    time_conditioning: bool = setting(False, "whether the network is told the noise level; else it is told 0")
    attention: Literal["auto", "sdpa", "flash"] = setting(
        "auto", "kernel of the attention; auto: flash where it is installed"
    )

    def __post_init__(self) -> None:
        positive(self, "hidden_size", "num_blocks", "num_heads", "cond_dim")
        allowed = f"a multiple of 2 * num_heads = {2 * self.num_heads}"
        check(self.hidden_size % (2 * self.num_heads) == 0, "hidden_size", self.hidden_size, allowed)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")


class DIT(nn.Module):
    """p(x_0 | x_t; λ), factored: `forward` returns features and the output head. MASK is the last of `num_states`.

    With `latent` absent the network is a teacher, a product of its positions. With it, λ enters before block `inject_at` as an extra
    token without rotary (Di4C, section 5) or by scaling and shifting the norms; the blocks before run once per x_t.
    """

    latent_head: MixtureHead | ClassHead
    latent_codebook: nn.Embedding
    latent_projection: nn.Sequential
    latent_modulation: nn.ModuleDict

    def __init__(self, model: DitConfig, *, num_states: int, latent: LatentConfig | None = None) -> None:
        super().__init__()
        self.config = model
        self.latent = latent
        self.inject_at = inject_block(latent, model.num_blocks)
        self.num_states = num_states
        self.noise = LogLinear()
        self.activation_checkpointing = False
        self.matmul_dtype: torch.dtype | None = None
        width = model.hidden_size
        self.vocab_embed = EmbeddingLayer(num_states, width)
        self.sigma_map = TimestepEmbedder(model.cond_dim)
        self.rotary_emb = Rotary(width // model.num_heads)
        self.blocks = nn.ModuleList(
            DDiTBlock(width, model.num_heads, model.cond_dim, model.dropout) for _ in range(model.num_blocks)
        )
        self.output_layer = DDitFinalLayer(width, num_states, model.cond_dim)
        if latent is not None:
            parts = latent_parts(latent, width=width, num_blocks=model.num_blocks, num_states=self.num_states)
            for name, part in parts.items():
                self.add_module(name, part)

    @property
    def mask_id(self) -> int:
        """The last state."""
        return self.num_states - 1

    def sample_latents(self, num_batch: int, num_lambdas: int, uniform: Uniform) -> Tensor | None:
        """L draws of λ a sequence, (B, L, K); None for a network without λ."""
        if self.latent is None:
            return None
        return sample_latents(self.latent, num_batch, num_lambdas, uniform)

    def forward(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Tensor | None = None, cond: Tensor | None = None
    ) -> Prediction:
        """Predict x_0 from `x_t` at times `t`, once for each of the L rows of `lam` (B, L, K).

        Without `lam` a student's λ path is left out, and the prediction is that of the teacher it was made from. Text has no classes:
        `cond` is not looked at. Raises `ValueError` where `lam` is given to a network without λ, or is of another shape.
        """
        check_latents(x_t, lam, self.latent)
        sigma_M = self.noise.sigma(t) if self.config.time_conditioning else torch.zeros_like(t[:1])
        return self.predict(x_t, sigma_M, lam)

    def predict(self, x_t: Int64[Tensor, "B D"], sigma: Float[Tensor, " M"], lam: Tensor | None) -> Prediction:
        """As `forward`, with the total noise `sigma` of each sequence (M = B, or 1 for all) in place of its time."""
        num_batch, num_positions = x_t.shape
        row_N, is_open = None, x_t == self.mask_id
        if lam is not None and self._shares_trunk():
            x_t, sigma, row_N = _distinct(x_t, sigma)
        flash = use_flash(self.config.attention) if x_t.is_cuda else False
        cond = F.silu(self.sigma_map(sigma))
        x = self.vocab_embed(x_t)
        cos, sin = self.rotary_emb(num_positions, 0)
        num_lambdas, embedded = 1, None
        for index, block in enumerate(self.blocks):
            if self.latent is not None and lam is not None and index == self.inject_at:
                if self.latent.path == "head":
                    mixed = self._run(cast(DDiTBlock, block).mix, x, cond, cos, sin, None, flash)
                    return self._by_head(mixed, cond, lam, row_N)
                num_lambdas = lam.shape[1]
                embedded = self._embed_latents(self.latent, lam).to(x.dtype)
                if row_N is not None:
                    x, cond = x[row_N], cond if len(cond) == 1 else cond[row_N]
                x = x.repeat_interleave(num_lambdas, 0)
                cond = cond if len(cond) == 1 else cond.repeat_interleave(num_lambdas, 0)
                if self.latent.path == "token":
                    x = torch.cat([x, embedded[:, None]], dim=1)
                    cos, sin = self.rotary_emb(num_positions, 1)
            shift_scale = None
            if embedded is not None and self.latent is not None and self.latent.path == "adaln":
                shift_scale = self.latent_modulation[str(index)](embedded)
            x = self._run(block, x, cond, cos, sin, shift_scale, flash)
        features = self.output_layer(x[:, :num_positions], cond)
        if self.latent is not None and self.latent.path == "classes" and lam is not None:
            features = features if row_N is None else features[row_N]
            return self.latent_head(features, is_open, self.output_head(), lam)
        return Rows(features.view(num_batch, num_lambdas, num_positions, -1), self.output_head())

    def _by_head(self, x: Tensor, cond: Tensor, lam: Tensor, row_N: Int64[Tensor, " B"] | None) -> Prediction:
        """The last MLP and norm, once for each row of `lam`, from the features behind the last attention."""
        if row_N is not None:
            x, cond = x[row_N], cond if len(cond) == 1 else cond[row_N]
        modulation_CNPF, chain = self.latent_head(x, lam)
        (num_batch, num_positions, _), num_lambdas = x.shape, lam.shape[1]
        modulation = modulation_CNPF.to(x.dtype).expand(num_batch, -1, -1, -1).flatten(0, 1)
        x = x.repeat_interleave(num_lambdas, 0)
        cond = cond if len(cond) == 1 else cond.repeat_interleave(num_lambdas, 0)
        of_block, of_output = modulation.chunk(2, dim=2)
        x = self._run(cast(DDiTBlock, self.blocks[-1]).feed, x, cond, of_block)
        features = self.output_layer(x, cond, of_output)
        rows = features.view(num_batch, num_lambdas, num_positions, -1), self.output_head()
        return Rows(*rows) if chain is None else Chained(*rows, chain)

    def _run(self, part: Callable[..., Tensor], *inputs: Any) -> Float[Tensor, "N P H"]:
        """A block or a half of one, whose inner activations are recomputed in the backward pass where the run asks for that."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)

    def _shares_trunk(self) -> bool:
        """Whether equal sequences may share the blocks before λ enters: no gradient, no dropout."""
        late = self.latent is not None and self.inject_at > 0
        return late and not torch.is_grad_enabled() and not (self.training and self.config.dropout)

    def output_head(self) -> LinearHead:
        """The linear head with SUBS' first half: MASK has probability 0."""
        linear = self.output_layer.linear
        return LinearHead(linear.weight, linear.bias, impossible=self.mask_id, matmul_dtype=self.matmul_dtype)

    def _embed_latents(self, latent: LatentConfig, lam: Tensor) -> Float[Tensor, "N H"]:
        flat = lam.flatten(0, 1)
        if latent.law == "codebook":
            return self.latent_codebook(flat[:, 0])
        features = latent_features(latent, flat)
        return self.latent_projection(features.to(next(self.latent_projection.parameters()).dtype))


def _distinct(
    x_t: Int64[Tensor, "B D"], sigma: Float[Tensor, " M"]
) -> tuple[Int64[Tensor, "U D"], Float[Tensor, " W"], Int64[Tensor, " B"]]:
    """The distinct pairs of sequence and noise level (one level for all stays one), and which of them each row is.

    After a short hop of the teacher most of the L sequences that the student is asked about are still equal.
    """
    if len(sigma) == 1:
        x_UD, row_B = x_t.unique(dim=0, return_inverse=True)
        return x_UD, sigma, row_B
    levels, level_B = sigma.unique(return_inverse=True)
    pair_UK, row_B = torch.cat([x_t, level_B[:, None]], 1).unique(dim=0, return_inverse=True)
    return pair_UK[:, :-1], levels[pair_UK[:, -1]], row_B


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
