"""The diffusion transformer of MDLM and SDTT (after Peebles and Xie 2023), and the mixture student made of it.

Parameters bear the names and shapes of the published checkpoints (without their `backbone.`). The student adds `latent_projection` (as
published) or `latent_codebook`, for λ by adaLN one `latent_modulation` a conditioned block, or, for λ behind all attention or behind the
output_head, `latent_head`.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from di4c_lm.domains.text.settings import ModelConfig
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
from di4c_lm.networks.attention import Rotary, use_flash
from di4c_lm.networks.dit_blocks import DDiTBlock, DDitFinalLayer, EmbeddingLayer, TimestepEmbedder
from di4c_lm.networks.output_head import LinearHead
from di4c_lm.networks.prediction import Rows
from di4c_lm.processes.denoiser import Prediction
from di4c_lm.processes.schedules import LogLinear


class DIT(nn.Module):
    """p(x_0 | x_t; λ), factored: `forward` returns features and the output head. MASK is the last of `num_states`.

    With `latent` absent the network is a teacher, a product of its positions. With it, λ enters before block `inject_at` as an extra
    token without rotary (Di4C, section 5) or by scaling and shifting the norms; the blocks before run once per x_t.
    """

    latent_head: MixtureHead | ClassHead
    latent_codebook: nn.Embedding
    latent_projection: nn.Sequential
    latent_modulation: nn.ModuleDict

    def __init__(self, model: ModelConfig, *, num_states: int, latent: LatentConfig | None = None) -> None:
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
