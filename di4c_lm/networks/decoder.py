"""The decoder of Llama, Qwen, LLaDA and Dream, reading in both directions, under Llama's names (without their `model.`)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import check, positive, section, setting
from di4c_lm.networks.base import (
    BlockStages,
    Network,
    TransformerBlock,
    Within,
    attend,
    frequencies,
    phases,
    rotate,
    use_flash,
)
from di4c_lm.processes.denoiser import LinearHead, widest

_INIT_STD = 0.02  # of fresh weights


@section
class DecoderConfig:
    """A decoder of the Llama family: RMS norms, SwiGLU, rotary positions, grouped key and value heads."""

    hidden_size: int = setting(192, "width of the residual stream")
    num_blocks: int = setting(4, "blocks of attention and MLP")
    num_heads: int = setting(4, "attention heads")
    num_kv_heads: int = setting(4, "heads of keys and values, each read by num_heads / num_kv_heads queries")
    head_dim: int = setting(48, "width of a head")
    mlp_size: int = setting(512, "width of the MLP's hidden layer")
    rope_theta: float = setting(10_000.0, "base of the rotary frequencies")
    norm_eps: float = setting(1e-6, "added to the mean square in each RMS norm")
    qkv_bias: bool = setting(False, "queries, keys and values have biases")
    qk_norm: bool = setting(False, "each head's queries and keys are normed")
    tied: bool = setting(False, "the output head is the embedding")
    shift: bool = setting(False, "the logits of a token stand one position before it")
    attention: Literal["auto", "sdpa", "flash"] = setting(
        "auto", "attention kernel; auto: flash-attn where it is installed, else PyTorch's own"
    )

    def __post_init__(self) -> None:
        sizes = ("hidden_size", "num_blocks", "num_heads", "num_kv_heads", "head_dim", "mlp_size")
        positive(self, *sizes, "rope_theta", "norm_eps")
        allowed = f"a divisor of num_heads = {self.num_heads}"
        check(self.num_heads % self.num_kv_heads == 0, "num_kv_heads", self.num_kv_heads, allowed)
        check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even")

    @property
    def depth(self) -> int:
        """Blocks."""
        return self.num_blocks


class Decoder(Network):
    """p(x_0 | x_t) as a product of positions: features and the output head. It knows neither times nor classes.

    States are the first `num_states` of the `num_rows` rows of the vocabulary; no token stands for the others. MASK is any state.
    """

    def __init__(
        self, model: DecoderConfig, *, num_states: int, mask_id: int | None = None, num_rows: int | None = None
    ) -> None:
        super().__init__()
        self.config = model
        num_rows = num_states if num_rows is None else num_rows
        mask_id = num_states - 1 if mask_id is None else mask_id
        check(num_states <= num_rows, "num_states", num_states, f"at most the {num_rows} rows of the vocabulary")
        check(0 <= mask_id < num_states, "mask_id", mask_id, f"one of the {num_states} states")
        self.sizes = {"num_states": num_states, "num_rows": num_rows, "mask_id": mask_id}
        self.num_states, self.mask_id, self.width = num_states, mask_id, model.hidden_size
        self.embed_tokens = nn.Embedding(num_rows, self.width)
        self.layers = nn.ModuleList(DecoderBlock(model) for _ in range(model.num_blocks))
        self.norm = RmsNorm(self.width, model.norm_eps)
        if not model.tied:
            self.lm_head = nn.Linear(self.width, num_rows, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INIT_STD)

    def stages(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], cond: Tensor | None, *, share: bool
    ) -> "DecoderStages":
        """See `Network.stages`."""
        return DecoderStages(self, x_t, cond, share=share)

    def output_head(self) -> LinearHead:
        """The linear head over the states; MASK has probability 0."""
        weight = self.embed_tokens.weight if self.config.tied else self.lm_head.weight
        rows = self.num_states if self.num_states < len(weight) else None
        return LinearHead(weight, None, self.mask_id, self.matmul_dtype, first_rows=rows)


class DecoderStages(BlockStages):
    """A pass of `Decoder`."""

    def __init__(
        self,
        network: Decoder,
        x_t: Int64[Tensor, "B D"],
        segments: Int64[Tensor, "B D"] | None = None,
        *,
        share: bool = False,
    ) -> None:
        unknown, row_B, self.segments = x_t == network.mask_id, None, segments
        if share and network.may_share():
            rows = x_t if segments is None else torch.cat([x_t, segments], 1)
            rows, row_B = rows.unique(dim=0, return_inverse=True)
            x_t, segments = rows[:, : x_t.shape[1]], None if segments is None else rows[:, x_t.shape[1] :]
        super().__init__(network, network.layers, unknown, row_B)
        self._of_rows = segments  # of the rows of the stream
        self.x = network.embed_tokens(x_t)
        self._flash = use_flash(network.config.attention) if x_t.is_cuda else False
        self._is_aligned = not network.config.shift
        self._turn()

    def join(self, num_lambdas: int, token: Float[Tensor, "N H"]) -> None:
        """See `BlockStages.join`: the token is not rotated."""
        super().join(num_lambdas, token)
        self._turn()

    def before_last_mlp(self) -> Float[Tensor, "B D H"]:
        """See `BlockStages.before_last_mlp`; each row stands at the position that it predicts."""
        self.x, self._is_aligned = self._aligned(super().before_last_mlp()), True
        return self.x

    def _take(self, rows: Callable[[Tensor], Tensor]) -> None:
        super()._take(rows)
        if self._of_rows is not None:
            self._of_rows = rows(self._of_rows)
            self._turn()

    def _turn(self) -> None:
        config, num_extra = self.network.config, self.x.shape[1] - self.num_positions
        inv_freq = frequencies(config.head_dim, config.rope_theta, device=self.x.device)
        within = None if self._of_rows is None else Within.of(self._of_rows, num_extra)
        self.given = (*phases(inv_freq, self.num_positions, num_extra, within), self._flash, within)

    def _features(self, shift_scale: Tensor | None) -> Tensor:
        return self.network.norm(self._aligned(self.x[:, : self.num_positions]), shift_scale)

    def _aligned(self, x: Float[Tensor, "N D H"]) -> Float[Tensor, "N D H"]:
        """Each row at the position that it predicts: shifted by one, and of the first of a record, which nothing precedes, its own."""
        if self._is_aligned:
            return x
        before = torch.cat([x[:, :1], x[:, :-1]], 1)
        return before if self._of_rows is None else torch.where(Within(self._of_rows).starts[..., None], x, before)


class DecoderBlock(TransformerBlock):
    """Attention and MLP, each behind an RMS norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGlu(config.hidden_size, config.mlp_size)

    def mix(
        self,
        x: Float[Tensor, "N P H"],
        shift_scale: Float[Tensor, "N 1 twoH"] | None,
        cos: Tensor,
        sin: Tensor,
        flash: bool,  # noqa: FBT001 (checkpointing passes it by position)
        within: Within | None = None,
    ) -> Float[Tensor, "N P H"]:
        """The block's first half, attention."""
        return x + self.self_attn(self.input_layernorm(x, shift_scale), cos, sin, flash=flash, within=within)

    def feed(
        self, x: Float[Tensor, "N P H"], shift_scale: Float[Tensor, "N Q twoH"] | None, *_: object
    ) -> Float[Tensor, "N P H"]:
        """The block's second half, the MLP, each position by itself."""
        return x + self.mlp(self.post_attention_layernorm(x, shift_scale))


class Attention(nn.Module):
    """Attention over all positions, or those of a record, in both directions."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = dim = config.head_dim
        width, outer, inner = config.hidden_size, config.num_heads * dim, config.num_kv_heads * dim
        self.q_proj = nn.Linear(width, outer, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, inner, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, inner, bias=config.qkv_bias)
        self.o_proj = nn.Linear(outer, width, bias=False)
        if config.qk_norm:
            self.q_norm = RmsNorm(dim, config.norm_eps)
            self.k_norm = RmsNorm(dim, config.norm_eps)

    def forward(
        self, x: Float[Tensor, "N P H"], cos: Tensor, sin: Tensor, *, flash: bool, within: Within | None = None
    ) -> Float[Tensor, "N P H"]:
        """Heads are normed where the model does that, then turned in float32."""
        q, k, v = (one(x).unflatten(2, (-1, self.head_dim)) for one in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rotate(one.to(widest(one.dtype)), cos, sin).to(one.dtype) for one in (q, k))
        return self.o_proj(attend(q, k, v, flash=flash, within=within).flatten(2))


class SwiGlu(nn.Module):
    """W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "N P H"]) -> Float[Tensor, "N P H"]:
        """Each position by itself."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32, times a weight; then shifted and scaled, where a mixture asks for that."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(
        self, x: Float[Tensor, "*rows H"], shift_scale: Float[Tensor, "N Q twoH"] | None = None
    ) -> Float[Tensor, "*rows H"]:
        """Over the last axis."""
        wide = x.to(widest(x.dtype))
        normal = self.weight * (wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype)
        if shift_scale is None:
            return normal
        shift, scale = shift_scale.chunk(2, dim=-1)
        return normal * (1 + scale) + shift
