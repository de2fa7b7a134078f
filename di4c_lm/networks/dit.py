"""The diffusion transformer of MDLM and SDTT (after Peebles and Xie 2023), under the published names (without their `backbone.`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from di4c_lm.core.settings import check, positive, section, setting
from di4c_lm.networks.base import (
    BlockStages,
    Joined,
    Network,
    Rotary,
    TransformerBlock,
    Within,
    attend,
    rotate,
    rows_at,
    use_flash,
)
from di4c_lm.processes.denoiser import LinearHead, OutputHead, WrappedHead, widest
from di4c_lm.processes.masked import LogLinear, MaskedProcess
from di4c_lm.processes.uniform import UniformProcess

_EPS = 1e-5
_TIED_STD = 0.02  # initial standard deviation of an embedding that is the output head too
_OF_X_T = 2  # features of the uniform process that are not the network's


@section
class DitConfig:
    """The DiT of MDLM and SDTT."""

    hidden_size: int = setting(192, "width of the residual stream")
    num_blocks: int = setting(4, "blocks of attention and MLP")
    num_heads: int = setting(4, "attention heads")
    cond_dim: int = setting(128, "width of the embedding of the noise level")
    dropout: float = setting(0.0, "share of activations dropped in training")
    time_conditioning: bool = setting(False, "give the network the noise level; else it gets 0")
    process: Literal["masked", "uniform"] = setting(
        "masked", "noise that it is trained on; masked: tokens become MASK; uniform: they become any token (Duo)"
    )
    impossible: int | None = setting(
        None, "of uniform noise: the state that x_0 never has, such as the tokenizer's mask; of masked noise it is MASK"
    )
    modulation: bool = setting(
        True, "norms and gates are set by the noise level (adaLN); without, there is no input for it (RADD)"
    )
    norm_bias: bool = setting(False, "norms have biases (RADD)")
    tied: bool = setting(False, "the output head has the embedding's weights, and a bias of its own")
    output: Literal["logits", "scores", "scaled_scores"] = setting(
        "logits",
        "output layer; logits: of x_0; scores: log concrete scores (SEDD); scaled_scores: with log (e^σ - 1) (S - 1) added",
    )
    attention: Literal["auto", "sdpa", "flash"] = setting(
        "auto", "attention kernel; auto: flash-attn where it is installed, else PyTorch's own"
    )

    def __post_init__(self) -> None:
        positive(self, "hidden_size", "num_blocks", "num_heads", "cond_dim")
        allowed = f"a multiple of 2 * num_heads = {2 * self.num_heads}"
        check(self.hidden_size % (2 * self.num_heads) == 0, "hidden_size", self.hidden_size, allowed)
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        timed, uniform = self.time_conditioning, self.process == "uniform"
        check(self.modulation or not timed, "time_conditioning", timed, "false where modulation=false")
        check(
            timed or not uniform, "time_conditioning", timed, "true where process=uniform: tokens do not show the time"
        )
        check(not uniform or self.output == "logits", "output", self.output, "logits where process=uniform")
        check(uniform or self.impossible is None, "impossible", self.impossible, "null where process=masked")

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.num_blocks


class DIT(Network):
    """p(x_0 | x_t) as a product of positions, factored: features and the output head. Of a masked process MASK is the last state.

    Text has no classes: `cond` are `Stages.segments`. What its own objective makes of the output layer's values c:

    - logits of a masked process (MDLM, RADD, BD3-LM): p(x_0 = v | x_t) = softmax c over the tokens.
    - log concrete scores (SEDD, Lou et al. 2024): e^c(v) = p_t(v) / p_t(MASK) = p(x_0 = v | x_t) / (e^σ - 1), with MASK's position
      changed to v, in scaled_scores less log (e^σ - 1) (S - 1). Neither constant depends on v, so the same softmax says p.
    - logits of the uniform process (Duo): softmax c stands in place of x_0 in q(x_s | x_0, x_t), and is at its best the distribution of
      x_0 given all other positions; p(x_0 = v | x_t) ~ e^c(v) q(x_t | x_0 = v) then gives the same reverse step (see `UniformHead`).
    """

    joined_share = 3 / 12  # what attention reads

    def __init__(self, model: DitConfig, *, num_states: int) -> None:
        super().__init__()
        self.config = model
        self.sizes = {"num_states": num_states}
        never = model.impossible
        check(never is None or 0 <= never < num_states, "impossible", never, f"one of the {num_states} states, or null")
        self.num_states = num_states
        self.mask_id = num_states - 1 if model.process == "masked" else None
        self.noise = LogLinear()
        self.width = width = model.hidden_size
        self.vocab_embed = EmbeddingLayer(num_states, width, tied=model.tied)
        if model.modulation:
            self.sigma_map = TimestepEmbedder(model.cond_dim)
        self.rotary_emb = Rotary(width // model.num_heads)
        self.blocks = nn.ModuleList(DDiTBlock(model) for _ in range(model.num_blocks))
        self.output_layer = DDitFinalLayer(model, num_states)

    @property
    def process(self) -> MaskedProcess | UniformProcess:
        """What it is trained on, with MDLM's log-linear schedule."""
        return UniformProcess(self.num_states) if self.mask_id is None else MaskedProcess(self.mask_id)

    def stages(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], cond: Tensor | None, *, share: bool
    ) -> "DitStages":
        """See `Network.stages`."""
        sigma_M = self.noise.sigma(t) if self.config.time_conditioning else torch.zeros_like(t[:1])
        return DitStages(self, x_t, sigma_M, cond, share=share)

    def output_head(self) -> OutputHead:
        """The linear head with SUBS' first half: MASK has probability 0; of the uniform process with what x_t says of its own position."""
        last, tied = self.output_layer, self.config.tied
        weight, bias = (self.vocab_embed.embedding, last.bias) if tied else (last.linear.weight, last.linear.bias)
        never = self.config.impossible if self.mask_id is None else self.mask_id
        head = LinearHead(weight, bias, impossible=never, matmul_dtype=self.matmul_dtype)
        return head if self.config.process == "masked" else UniformHead(head)


@final
@dataclass(frozen=True)
class UniformHead(WrappedHead):
    """log p(x_0 = v | x_t^d, the rest) = log p(v | the rest) + log q(x_t^d | x_0 = v), up to a constant; `inner` gives the first term.

    With it Σ_v q(x_s | v, x_t) p(v | x_t) is Duo's reverse step, q(x_s | x_0, x_t) with the first term's probabilities in place of x_0:
    both are q(x_t | x_s) (α_s p(x_s | the rest) + (1 - α_s) / S) up to a factor. The last two of the features are x_t^d itself and
    log q(x_t^d | x_0 = x_t^d) less that for any other x_0; they are wide enough to be exact, and no gradient is theirs.
    """

    inner: LinearHead

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """See `OutputHead.logits`."""
        hidden_NH, state_N1, odds_N1 = self._parts(features_NH)
        logits_NS = self.inner.logits(hidden_NH, positions_N)
        return logits_NS.scatter_add(1, state_N1, odds_N1.to(logits_NS.dtype))

    def vjp(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N H"]:
        """See `OutputHead.vjp`: what is added has no gradient."""
        hidden_NH = self._parts(features_NH)[0]
        grad_NH = self.inner.vjp(hidden_NH, positions_N, grad_NS, parameter_grads)
        return F.pad(grad_NH.to(features_NH.dtype), (0, _OF_X_T))

    def target_logits(
        self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"], targets_NT: Int64[Tensor, "N T"]
    ) -> Float[Tensor, "N T"]:
        """See `OutputHead.target_logits`."""
        hidden_NH, state_N1, odds_N1 = self._parts(features_NH)
        logits_NT = self.inner.target_logits(hidden_NH, positions_N, targets_NT)
        return logits_NT + torch.where(targets_NT == state_N1, odds_N1, 0.0).to(logits_NT.dtype)

    def _parts(
        self, features_NH: Float[Tensor, "N H"]
    ) -> tuple[Float[Tensor, "N h"], Int64[Tensor, "N 1"], Float[Tensor, "N 1"]]:
        """What the linear head reads, the state of x_t, and its log-odds."""
        state_N1, odds_N1 = features_NH[:, -_OF_X_T:].detach().split(1, dim=1)
        return features_NH[:, :-_OF_X_T].to(self.inner.weight.dtype), state_N1.long(), odds_N1


class DitStages(BlockStages):
    """A pass of `DIT`, with the total noise `sigma` of each sequence (M = B, or 1 for all) in place of its time."""

    def __init__(
        self,
        network: DIT,
        x_t: Int64[Tensor, "B D"],
        sigma: Float[Tensor, " M"],
        segments: Int64[Tensor, "B D"] | None = None,
        *,
        share: bool = False,
    ) -> None:
        unknown, row_B, self.segments = network.process.unknown(x_t), None, segments
        if share and network.may_share():
            num_positions = x_t.shape[1]
            rows, sigma, row_B = distinct(x_t if segments is None else torch.cat([x_t, segments], 1), sigma)
            x_t, segments = rows[:, :num_positions], None if segments is None else rows[:, num_positions:]
        super().__init__(network, network.blocks, unknown, row_B)
        self._of_rows = segments  # of the rows of the stream
        self.seen = x_t  # by the rows of the stream as it begins
        flash = use_flash(network.config.attention) if x_t.is_cuda else False
        self.x = network.vocab_embed(x_t)
        cond = F.silu(network.sigma_map(sigma)) if network.config.modulation else self.x.new_zeros(1, 1)
        self.given = (cond, *self._turned(flash))
        self._of_x_t: Tensor | None = None  # of the uniform process: see `UniformHead`
        if isinstance(network.process, UniformProcess):
            odds_BD = network.process.log_odds(sigma)[:, None].expand(x_t.shape)
            self._of_x_t = torch.stack([x_t, odds_BD], 2).to(widest(self.x.dtype))

    @property
    def narrows(self) -> bool:
        """See `BlockStages.narrows`; not where records are told apart, nor of the uniform process, which asks for all."""
        return self.segments is None and self._of_x_t is None

    def join(self, num_lambdas: int, token: Float[Tensor, "N H"]) -> None:
        """See `BlockStages.join`: the token is not rotated. What the next block's attention reads of equal rows is made once."""
        cond, *_, flash, _ = self.given
        if self.narrows and len(cond) == 1:
            self._joined = Joined(token[:, None].to(self.x.dtype), self._row_B, num_lambdas)
            self._row_B = None
        else:
            super().join(num_lambdas, token)
        self.given = (self.given[0], *self._turned(flash, num_extra=1))

    def _turned(self, flash: bool, num_extra: int = 0) -> tuple[Any, ...]:  # noqa: FBT001
        """What attention reads: phases, whether flash-attn serves, and which places see each other."""
        within = None if self._of_rows is None else Within.of(self._of_rows, num_extra)
        return *self.network.rotary_emb(self.num_positions, num_extra, within), flash, within

    def _take(self, rows: Any) -> None:
        super()._take(rows)
        cond, *rest = self.given
        if self._of_rows is not None:
            self._of_rows = rows(self._of_rows)
            rest = self._turned(rest[-2], self.x.shape[1] - self.num_positions)
        self.given = (cond if len(cond) == 1 else rows(cond), *rest)
        self._of_x_t = None if self._of_x_t is None else rows(self._of_x_t)

    def _features(self, shift_scale: Tensor | None) -> Tensor:
        features = self.network.output_layer(self.x[:, : self.num_positions], self.given[0], shift_scale)
        return features if self._of_x_t is None else torch.cat([features.to(self._of_x_t.dtype), self._of_x_t], 2)


def distinct(
    x_t: Int64[Tensor, "B D"], sigma: Float[Tensor, " M"]
) -> tuple[Int64[Tensor, "U D"], Float[Tensor, " W"], Int64[Tensor, " B"]]:
    """The distinct pairs of sequence and noise level (one level for all stays one), and which of them each row is.

    After a short step of the teacher most of the L sequences that the student gets are still equal.
    """
    if len(sigma) == 1:
        x_UD, row_B = x_t.unique(dim=0, return_inverse=True)
        return x_UD, sigma, row_B
    levels, level_B = sigma.unique(return_inverse=True)
    pair_UK, row_B = torch.cat([x_t, level_B[:, None]], 1).unique(dim=0, return_inverse=True)
    return pair_UK[:, :-1], levels[pair_UK[:, -1]], row_B


class LayerNorm(nn.Module):
    """Layer norm with a weight, perhaps a bias, scaled and shifted from outside (adaLN), computed in float32."""

    def __init__(self, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(
        self, x: Float[Tensor, "N P H"], shift: Float[Tensor, "M Q H"], scale: Float[Tensor, "M Q H"]
    ) -> Float[Tensor, "N P H"]:
        """((x - mean) / sqrt(var + 1e-5) * weight + bias) * (1 + scale) + shift."""
        wide = widest(x.dtype)
        shift, scale = shift.to(wide), 1 + scale.to(wide)
        shift = shift if self.bias is None else shift + self.bias.to(wide) * scale
        return modulated_norm(x, shift, self.weight.to(wide) * scale)


class Unmodulated(nn.Module):
    """In place of the map from the noise level: shifts and scales of 0, gates of 1, which have no parameters."""

    def __init__(self, width: int, *, gated: bool) -> None:
        super().__init__()
        self.width, self.triples = width, 2 if gated else 0

    def forward(self, cond: Float[Tensor, "1 C"]) -> Float[Tensor, "1 K"]:
        """Of a block twice shift, scale and gate; of the last norm shift and scale."""
        none = cond.new_zeros(1, 2 * self.width)
        return torch.cat([none, cond.new_ones(1, self.width)] * self.triples, 1) if self.triples else none


class EmbeddingLayer(nn.Module):
    """Token embedding, under the published name; `tied`: small at first, so that all tokens are about as likely."""

    def __init__(self, num_states: int, width: int, *, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(num_states, width))
        if tied:
            nn.init.normal_(self.embedding, std=_TIED_STD)
        else:
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


class DDiTBlock(TransformerBlock):
    """Attention and MLP, each behind a norm that the noise level, and perhaps more, scales and shifts; M is 1 or N."""

    def __init__(self, model: DitConfig) -> None:
        super().__init__()
        width = model.hidden_size
        self.num_heads = model.num_heads
        self.dropout = model.dropout
        self.norm1 = LayerNorm(width, bias=model.norm_bias)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = LayerNorm(width, bias=model.norm_bias)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = (
            nn.Linear(model.cond_dim, 6 * width) if model.modulation else Unmodulated(width, gated=True)
        )
        for parameter in self.adaLN_modulation.parameters():
            nn.init.zeros_(parameter)

    def mix(
        self,
        x: Float[Tensor, "N P H"],
        shift_scale: Float[Tensor, "N 1 twoH"] | None,
        cond: Float[Tensor, "M C"],
        cos: Tensor,
        sin: Tensor,
        flash: bool,  # noqa: FBT001 (checkpointing passes it by position)
        within: Within | None = None,
        *,
        joined: Joined | None = None,
        chosen: Int64[Tensor, "K R"] | None = None,
    ) -> Float[Tensor, "K R H"]:
        """The block's first half, attention, at all places or the `chosen` ones; with what is `joined` to the stream before."""
        shift_1, scale_1, gate_1 = modulation(self.adaLN_modulation(cond)[:, None].chunk(6, dim=2)[:3], shift_scale)
        qkv = self.attn_qkv(self.norm1(x, shift_1, scale_1))
        if joined is not None:
            qkv = joined.behind(qkv, self.attn_qkv(self.norm1(joined.token, shift_1, scale_1)))
            x = joined.behind(x, joined.token)
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.num_heads, -1).unbind(2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if chosen is not None:
            x, q = rows_at(x, chosen), rows_at(q, chosen)
        # A copy of v, so that q and k unrotated are not kept for the backward pass.
        mixed = attend(q, k, v.contiguous(), flash=flash, within=within)
        return x + gate_1 * self._drop(self.attn_out(mixed.flatten(2)))

    def feed(
        self,
        x: Float[Tensor, "N P H"],
        shift_scale: Float[Tensor, "N Q twoH"] | None,
        cond: Float[Tensor, "M C"],
        *_: object,
    ) -> Float[Tensor, "N P H"]:
        """The block's second half, the MLP, each position by itself."""
        shift_2, scale_2, gate_2 = modulation(self.adaLN_modulation(cond)[:, None].chunk(6, dim=2)[3:], shift_scale)
        return x + gate_2 * self._drop(self.mlp(self.norm2(x, shift_2, scale_2)))

    def _drop(self, x: Float[Tensor, "N P H"]) -> Float[Tensor, "N P H"]:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class DDitFinalLayer(nn.Module):
    """The last norm, and of the linear output head that `Prediction` carries what is not the embedding's."""

    def __init__(self, model: DitConfig, num_states: int) -> None:
        super().__init__()
        width = model.hidden_size
        self.norm_final = LayerNorm(width, bias=model.norm_bias)
        if model.tied:
            self.bias = nn.Parameter(torch.zeros(num_states))
        else:
            self.linear = nn.Linear(width, num_states)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = (
            nn.Linear(model.cond_dim, 2 * width) if model.modulation else Unmodulated(width, gated=False)
        )
        for parameter in self.adaLN_modulation.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Float[Tensor, "N P H"],
        cond: Float[Tensor, "M C"],
        shift_scale: Float[Tensor, "N Q twoH"] | None = None,
    ) -> Float[Tensor, "N P H"]:
        """Features: what the linear map is applied to."""
        return self.norm_final(x, *modulation(self.adaLN_modulation(cond)[:, None].chunk(2, dim=2), shift_scale))


def modulation(own: Sequence[Tensor], shift_scale: Tensor | None) -> list[Tensor]:
    """Shift, scale and what else there is, with the shift and scale that are given added to the first two."""
    if shift_scale is None:
        return list(own)
    return [*(a + b for a, b in zip(own, shift_scale.chunk(2, dim=2), strict=False)), *own[2:]]


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
