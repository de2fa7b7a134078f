"""The causal layers of `mixture=sequential`: how the tokens sampled so far change what a network says of the next position.

Behind a transformer they change the features that its output head reads. Behind a U-Net, whose output layer has two numbers a colour, they
change the logits of the levels.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from di4c_lm.networks.base import AttentionBlock, Network, Rotary, attend, rotate, use_flash
from di4c_lm.processes.denoiser import OutputHead

FURTHEST = 8  # distances from one position to the next that are told apart, in both directions
_EMBEDDING_STD = 0.1
_LEAST_WIDTH = 32  # of an attention head behind a network that has none to go by


class Kept:
    """Keys and values of one layer at the positions so far, in room for all that there will be."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._count = 0
        self._both: list[Tensor] = []

    def add(self, *one: Float[Tensor, "B 1 heads dim"]) -> list[Tensor]:
        """Take in key and value of one more position; the keys and the values of all so far (B, n, heads, dim)."""
        if not self._both:
            self._both = [x.new_empty(len(x), self._room, *x.shape[2:]) for x in one]
        for whole, x in zip(self._both, one, strict=True):
            whole[:, self._count] = x[:, 0]
        self._count += 1
        return [whole[:, : self._count] for whole in self._both]


class CausalBlock(AttentionBlock):
    """Attention to the positions sampled so far, and an MLP."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(
        self,
        x: Float[Tensor, "B N H"],
        cos: Tensor,
        sin: Tensor,
        kept: Kept | None,
        flash: bool,  # noqa: FBT001
    ) -> Float[Tensor, "B N H"]:
        """The stream of N positions; with `kept` of one more, which sees those before too."""
        q, k, v = self.attn_qkv(self.norm1(x)).unflatten(2, (3, self.num_heads, -1)).unbind(2)
        seen = [rotate(k, cos, sin), v] if kept is None else kept.add(rotate(k, cos, sin), v)
        mixed = attend(rotate(q, cos, sin), *seen, flash=flash, causal=kept is None)
        x = x + self.attn_out(mixed.flatten(2))
        return x + self.mlp(self.norm2(x))


class SequentialHead(nn.Module):
    """From features, positions and tokens to the change of the features: embeddings, causal layers, and a last map from zero.

    Sizes that are not said are those of a transformer on a sequence of tokens.
    """

    def __init__(
        self,
        network: Network,
        *,
        layers: int,
        context: int,
        heads: int | None = None,
        num_tokens: int | None = None,
        num_near: int | None = None,
        num_changed: int | None = None,
    ) -> None:
        super().__init__()
        width: int = network.width
        heads = heads or int(network.config.num_heads)
        self.offsets = [offset for offset in range(-context, context + 1) if offset]
        self.nothing = network.num_states  # beside the states, MASK among them: no position there
        self.attention = getattr(network.config, "attention", "auto")
        self.rotary = Rotary(width // heads)
        self.of_features = nn.Linear(width, width)
        self.of_distance = nn.Embedding(2 * FURTHEST + 1, width)
        self.of_token = nn.Embedding(num_tokens or self.nothing + 1, width)
        self.of_tokens = nn.Linear((1 + (num_near or len(self.offsets))) * width, width, bias=False)
        self.blocks = nn.ModuleList(CausalBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, num_changed or width)
        nn.init.normal_(self.of_distance.weight, std=_EMBEDDING_STD)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        features: Float[Tensor, "B N H"],
        place: Int64[Tensor, "B N"],
        distance: Int64[Tensor, "B N"],
        last: Int64[Tensor, "B N"],
        near: Int64[Tensor, "B N C"],
        kept: Sequence[Kept] | None = None,
    ) -> Float[Tensor, "B N K"]:
        """What is added to what the output head reads of N positions, one after the other.

        Args:
            features: what the network knows of the positions.
            place: the positions.
            distance: from the position before to each, as `Ordered.distance` counts it.
            last: the token that was sampled before.
            near: the tokens beside each position, as `beside` finds them.
            kept: of each layer, keys and values of the positions before, where this is one more.
        """
        x = self.of_features(F.layer_norm(features, features.shape[-1:]).to(self.of_features.weight.dtype))
        token_BNT = torch.cat([last[..., None], near], 2)
        x = x + self.of_distance(distance) + self.of_tokens(self.of_token(token_BNT).flatten(2))
        x = self.placed(x, place)
        cos, sin = self.rotary.at(place)
        flash = use_flash(self.attention) if x.is_cuda else False
        for block, of_layer in zip(self.blocks, kept or [None] * len(self.blocks), strict=True):
            x = block(x, cos, sin, of_layer, flash)
        return self.change(self.out(self.norm(x)).to(features.dtype))

    def beside(
        self, values: Int64[Tensor, "B D"], place: Int64[Tensor, "B N"], outside: int | None = None
    ) -> Int64[Tensor, "B N C"]:
        """The values beside each position, `outside` (by default no token) where there is none."""
        padded_BP = F.pad(values, (0, 1), value=self.nothing if outside is None else outside)
        at_BNC = self.near(place, values.shape[1])
        return padded_BP.gather(1, at_BNC.flatten(1)).view(at_BNC.shape)

    def near(self, place: Int64[Tensor, "B N"], num_positions: int) -> Int64[Tensor, "B N C"]:
        """The positions that are read directly at each, `num_positions` in place of those past the ends: `offsets` from it."""
        at_BNC = place[..., None] + torch.tensor(self.offsets, device=place.device, dtype=place.dtype)
        return at_BNC.where((at_BNC >= 0) & (at_BNC < num_positions), num_positions)

    def seen(self, x_t: Int64[Tensor, "B D"]) -> Int64[Tensor, "B D"]:
        """The tokens of x_t as they are read."""
        return x_t

    def placed(self, x: Float[Tensor, "B N H"], place: Int64[Tensor, "B N"]) -> Float[Tensor, "B N H"]:
        """The stream, told where its positions are."""
        return x

    def change(self, out: Float[Tensor, "B N W"]) -> Float[Tensor, "B N K"]:
        """The last map's result, where the output head reads it."""
        return out

    def keys(self, num_positions: int, device: torch.device) -> Float64[Tensor, " D"]:
        """By which the positions are ordered from left to right."""
        return torch.arange(num_positions, device=device).double()


class PixelHead(SequentialHead):
    """The same on an image of S ordered levels, all of which x_t tells, though with noise.

    A position's own noisy level is read, and the levels of a square around it in all colours: those that were sampled, and those of x_t.
    """

    def __init__(self, network: Network, *, layers: int, context: int) -> None:
        shape, levels = network.image_shape, network.num_states
        assert shape is not None
        heads = next(n for n in range(max(1, network.width // _LEAST_WIDTH), 0, -1) if network.width % (2 * n) == 0)
        sizes = {"num_tokens": 2 * levels + 1, "num_near": shape[2] * (2 * context + 1) ** 2, "num_changed": levels}
        super().__init__(network, layers=layers, context=context, heads=heads, **sizes)
        self.shape, self.context = shape, context
        self.of_place = nn.Embedding(math.prod(shape), network.width)
        nn.init.normal_(self.of_place.weight, std=_EMBEDDING_STD)

    def near(self, place: Int64[Tensor, "B N"], num_positions: int) -> Int64[Tensor, "B N C"]:
        """See `SequentialHead.near`."""
        return squares(self.shape, self.context, place.device)[place]

    def seen(self, x_t: Int64[Tensor, "B D"]) -> Int64[Tensor, "B D"]:
        """See `SequentialHead.seen`: a noisy level is told from one that was sampled."""
        return x_t + self.nothing + 1

    def placed(self, x: Float[Tensor, "B N H"], place: Int64[Tensor, "B N"]) -> Float[Tensor, "B N H"]:
        """See `SequentialHead.placed`."""
        return x + self.of_place(place)

    def change(self, out: Float[Tensor, "B N S"]) -> Float[Tensor, "B N K"]:
        """See `SequentialHead.change`: behind the two numbers a colour, as `AddedLogits` has it."""
        return F.pad(out, (2, 0))

    def keys(self, num_positions: int, device: torch.device) -> Float64[Tensor, " D"]:
        """See `SequentialHead.keys`: row by row, a pixel's colours together."""
        rows, columns, colours = self.shape
        key_RQC = torch.arange(num_positions, device=device).double().view(rows, columns, colours)
        return key_RQC.permute(2, 0, 1).flatten()


@functools.cache
def squares(shape: tuple[int, int, int], reach: int, device: torch.device) -> Int64[Tensor, "D C"]:
    """Of each position of an image the positions at most `reach` rows and columns away, in all colours; D past its edges."""
    rows, columns, colours = shape
    number_CRQ = torch.arange(math.prod(shape), device=device).view(colours, rows, columns)
    padded_CRQ = F.pad(number_CRQ, (reach, reach, reach, reach), value=math.prod(shape))
    size = 2 * reach + 1
    around = padded_CRQ.unfold(1, size, 1).unfold(2, size, 1)  # colours, rows, columns, size, size
    around_RQN = around.permute(1, 2, 0, 3, 4).flatten(2)
    return around_RQN.expand(colours, -1, -1, -1).flatten(0, 2)


@final
@dataclass(frozen=True)
class AddedLogits(OutputHead):
    """`inner`, and what is added to its logits: the last S of the features."""

    inner: OutputHead

    @property
    def num_states(self) -> int:
        """S."""
        return self.inner.num_states

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those of `inner`."""
        return self.inner.parameters

    def logits(self, features_NH: Float[Tensor, "N H"], positions_N: Int64[Tensor, " N"]) -> Float[Tensor, "N S"]:
        """See `OutputHead.logits`."""
        own_NH, added_NS = features_NH[:, : -self.num_states], features_NH[:, -self.num_states :]
        return self.inner.logits(own_NH, positions_N) + added_NS

    def vjp(
        self,
        features_NH: Float[Tensor, "N H"],
        positions_N: Int64[Tensor, " N"],
        grad_NS: Float[Tensor, "N S"],
        parameter_grads: Sequence[Tensor | None],
    ) -> Float[Tensor, "N H"]:
        """See `OutputHead.vjp`."""
        added_NS = grad_NS.to(features_NH.dtype, copy=True)
        own_NH = self.inner.vjp(features_NH[:, : -self.num_states], positions_N, grad_NS, parameter_grads)
        return torch.cat([own_NH.to(features_NH.dtype), added_NS], 1)
