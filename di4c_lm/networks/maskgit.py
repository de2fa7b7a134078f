"""The masked transformer on image codes of MaskGIT-pytorch (Besnier and Chen 2023), and the mixture student made of it.

Parameters bear the names and shapes of the published checkpoints. The student adds `latent_projection` (as published) or
`latent_codebook`, for λ by adaLN one `latent_modulation` a conditioned block, or for λ behind all attention `latent_head`.
"""

from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from di4c_lm.core.settings import check, positive, section, setting
from di4c_lm.mixtures.base import Chained
from di4c_lm.mixtures.class_head import ClassHead
from di4c_lm.mixtures.code_head import MixtureHead
from di4c_lm.mixtures.latent import (
    Uniform,
    check_latents,
    inject_block,
    is_string,
    latent_features,
    sample_latents,
    string_uniforms,
)
from di4c_lm.mixtures.latent_path import latent_parts
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.attention import attend, use_flash
from di4c_lm.networks.prediction import Rows
from di4c_lm.networks.tied_head import TiedHead
from di4c_lm.processes.denoiser import NO_CLASS, Prediction

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
    def time_conditioning(self) -> bool:
        """False: the number of MASKs tells the time."""
        return False


class MaskGit(nn.Module):
    """p(x_0 | x_t, class; λ), factored: `forward` returns features and the tied output head.

    Codes are 0 to K - 1, MASK is K, the class of a sequence is one more token behind its D codes. With `latent` absent the network is a
    teacher, a product of its positions. With it, λ enters before block `inject_at` as an extra token without position (Di4C, section 5;
    at 0 also before the first layer, as published) or by scaling and shifting the norms; what comes before runs once per x_t. As a string
    of codes (path=head) it enters behind the last attention and shifts the last MLP and the last norm: see `MixtureHead`; as classes of the
    image's codes behind the network: see `ClassHead`.
    """

    latent_head: MixtureHead | ClassHead
    latent_codebook: nn.Embedding
    latent_projection: nn.Sequential
    latent_modulation: nn.ModuleDict

    def __init__(
        self,
        model: MaskGitConfig,
        *,
        num_codes: int,
        num_classes: int,
        length: int,
        latent: LatentConfig | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_codes", num_codes), ("num_classes", num_classes), ("length", length)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.config = model
        self.latent = latent
        self.inject_at = inject_block(latent, model.num_blocks)
        self.num_codes, self.num_classes, self.length = num_codes, num_classes, length
        self.activation_checkpointing = False
        self.matmul_dtype: torch.dtype | None = None
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
        if latent is not None:
            parts = latent_parts(latent, width=width, num_blocks=model.num_blocks, num_states=self.num_states)
            for name, part in parts.items():
                self.add_module(name, part)

    @property
    def mask_id(self) -> int:
        """K."""
        return self.num_codes

    @property
    def num_states(self) -> int:
        """S: the codes and MASK."""
        return self.num_codes + 1

    def sample_latents(self, num_batch: int, num_lambdas: int, uniform: Uniform) -> Tensor | None:
        """L draws of λ a sequence, (B, L, K); None for a network without λ."""
        if self.latent is None:
            return None
        return sample_latents(self.latent, num_batch, num_lambdas, uniform)

    def forward(
        self,
        x_t: Int64[Tensor, "B D"],
        t: Float[Tensor, " B"],
        lam: Tensor | None = None,
        cond: Int64[Tensor, " B"] | None = None,
    ) -> Prediction:
        """Predict x_0 from `x_t` given the classes `cond`, once for each of the L rows of `lam` (B, L, K); the time is not read.

        A class of -1, or no `cond`, leaves the class untold. Without `lam` a student's λ path is left out. Raises `ValueError` for a class
        or a length out of range, and where `lam` is given to a network without λ, or is of another shape.
        """
        check_latents(x_t, lam, self.latent)
        is_open = x_t == self.mask_id
        x_t = torch.cat([x_t, self._class_tokens(x_t, cond)[:, None]], 1)
        row_N = None
        if lam is not None and self._shares_trunk():
            x_t, row_N = x_t.unique(dim=0, return_inverse=True)
        x, embedded, modulation = self.tok_emb(x_t) + self.pos_emb, None, None
        by_head = lam is not None and self.latent is not None and self.latent.path == "head"
        at_once = lam is not None and self.inject_at == 0 and not by_head
        if at_once:
            x, embedded = self._mix(x, lam, row_N)
        x = self.first_layer(x)
        for index, layer in enumerate(self.transformer.layers):
            block = cast(Block, layer)
            if lam is not None and not at_once and index == self.inject_at:
                if by_head:
                    return self._by_head(self._run(block.mix, x), lam, row_N)
                x, embedded = self._mix(x, lam, row_N)
            if embedded is not None and self.latent is not None and self.latent.path == "adaln":
                modulation = self.latent_modulation[str(index)](embedded)
            x = self._run(block, x, modulation)
        features = self.last_layer(x[:, : self.length])
        if lam is not None and self.latent is not None and self.latent.path == "classes":
            features = features if row_N is None else features[row_N]
            return self.latent_head(features, is_open, self.output_head(), lam)
        num_lambdas = 1 if lam is None else lam.shape[1]
        return Rows(features.unflatten(0, (-1, num_lambdas)), self.output_head())

    def guided(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Tensor | None, cond: Int64[Tensor, " B"]
    ) -> tuple[Prediction, Prediction]:
        """The predictions with and without the condition, under one and the same λ.

        Codes sampled given the condition are told to both: the uniforms that they are made of would make two strings.
        """
        if lam is None or not is_string(lam):
            return self(x_t, t, lam, cond), self(x_t, t, lam, None)
        codes = self.sample_latents(len(x_t), 0, lambda shape: torch.zeros(shape, device=x_t.device))
        conditional, free = (self(x_t, t, codes, given) for given in (cond, None))
        chain = conditional.chain
        sampled_BNW = chain.sample(string_uniforms(lam, chain.num_windows))
        choice_BND = sampled_BNW[:, :, chain.window_of(torch.arange(x_t.shape[1], device=x_t.device))]
        return conditional.under(choice_BND), free.under(choice_BND)

    def output_head(self) -> TiedHead:
        """The token embedding once more, with the bias of each position."""
        impossible = None if self.config.mask_state else self.mask_id
        return TiedHead(
            self.tok_emb.weight, self.bias, self.num_states, impossible=impossible, matmul_dtype=self.matmul_dtype
        )

    def _by_head(self, x: Tensor, lam: Tensor, row_N: Tensor | None) -> Prediction:
        """The last MLP and norm at the D codes, once for each row of `lam`, from the features behind the last attention."""
        x = (x if row_N is None else x[row_N])[:, : self.length]
        modulation_CNPF, chain = self.latent_head(x, lam)
        num_batch, num_lambdas = lam.shape[:2]
        modulation = modulation_CNPF.to(x.dtype).expand(num_batch, -1, -1, -1).flatten(0, 1)
        of_block, of_output = modulation.chunk(2, dim=2)
        x = self._run(cast(Block, self.transformer.layers[-1]).feed, x.repeat_interleave(num_lambdas, 0), of_block)
        shift, scale = of_output.chunk(2, dim=2)
        features = self.last_layer(x) * (1 + scale) + shift
        rows = features.unflatten(0, (-1, num_lambdas)), self.output_head()
        return Rows(*rows) if chain is None else Chained(*rows, chain)

    def _run(self, part: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        """A block or a half of one, whose inner activations are recomputed in the backward pass where the run asks for that."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(part, *inputs, use_reentrant=False))
        return part(*inputs)

    def _mix(self, x: Tensor, lam: Tensor | None, row_N: Tensor | None) -> tuple[Tensor, Tensor]:
        """The stream once for each λ, with λ's token where it enters as one; and λ's embedding."""
        assert lam is not None and self.latent is not None
        x = x if row_N is None else x[row_N]
        x = x.repeat_interleave(lam.shape[1], 0)
        flat = lam.flatten(0, 1)
        if self.latent.law == "codebook":
            embedded = self.latent_codebook(flat[:, 0])
        else:
            features = latent_features(self.latent, flat)
            embedded = self.latent_projection(features.to(next(self.latent_projection.parameters()).dtype))
        embedded = embedded.to(x.dtype)
        return (torch.cat([x, embedded[:, None]], 1) if self.latent.path == "token" else x), embedded

    def _shares_trunk(self) -> bool:
        """Whether equal sequences may share the blocks before λ enters: no gradient, no dropout."""
        late = self.latent is not None and self.inject_at > 0
        return late and not torch.is_grad_enabled() and not (self.training and self.config.dropout)

    def _class_tokens(self, x_t: Int64[Tensor, "B D"], cond: Tensor | None) -> Int64[Tensor, " B"]:
        if x_t.shape[1] != self.length:
            raise ValueError(f"x_t: expected {self.length} codes a sequence, got {x_t.shape[1]}")
        untold = self.num_codes + 1 + self.num_classes
        if cond is None:
            return torch.full_like(x_t[:, 0], untold)
        check_classes(cond, self.num_classes)
        return torch.where(cond == NO_CLASS, untold, self.num_codes + 1 + cond)


def check_classes(labels: Int64[Tensor, " B"], num_classes: int) -> None:
    """Raise `ValueError` unless each label is a class, or -1 for none."""
    wrong = labels[(labels < NO_CLASS) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(
            f"class {int(wrong[0])} is impossible: allowed are 0 to {num_classes - 1}, and {NO_CLASS} for none"
        )


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
