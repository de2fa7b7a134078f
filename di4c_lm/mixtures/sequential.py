"""λ as the uniforms by which tokens are sampled one after the other: a small causal transformer behind a network.

With f_i the network's features of the i-th position to be sampled, and the same output head W for all,

    p(x_R | x_t) = Π_i p(x_i | x_1 ... x_{i-1}; x_t),    p(· | ...) = softmax W(f_i + change_i)

where change_i is made of the features of the first i positions, of the tokens sampled at those before i, and of what is known beside it. It
is 0 before training, and always of the first position. Behind a U-Net, whose output layer is no W f, it is added to the logits. R are
all masked positions, of pixels all positions, of which a step keeps those that it reveals (`positions=masked`), or those alone
(`revealed`): then the head is run once a token in all, a call that reveals a single token has the network's own distribution, and text
with gaps has to be learned. The network is run once a call. Relatives: one more layer that learns the sequential samples of a frozen
diffusion model (ADJUST, Bansal and Sanghavi 2025), last layers causal in a random order (Campbell et al. 2025).
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from di4c_lm.core.settings import at_least, check, section, setting
from di4c_lm.losses.reading import Reading, read_mixture
from di4c_lm.mixtures.base import Latents, Mixture, MixtureSettings, code_uniforms
from di4c_lm.networks.base import AttentionBlock, Network, Rotary, Rows, attend, rotate, use_flash
from di4c_lm.networks.logistic_head import AddedLogits
from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.denoiser import At, Positions, Walk, row_chunks, rows_at_once, sample_along
from di4c_lm.processes.rng import Rng, uniform

_FURTHEST = 8  # distances from one position to the next that are told apart, in both directions
_TOGETHER = 8  # sequences that the head takes at once in a loss, so that short ones are not padded to the longest
_EMBEDDING_STD = 0.1
_LEAST_WIDTH = 32  # of an attention head behind a network that has none to go by


@section
class SequentialSettings(MixtureSettings):
    """λ of the uniforms by which the tokens of a call are sampled one after the other, by causal layers behind the network."""

    layers: int = setting(1, "causal layers, of the network's width and heads")
    candidates: int = setting(
        0,
        "likeliest states of the network that are changed, the rest keep their weights; 0, or more than there are: all",
    )
    order: Literal["left_to_right", "random"] = setting(
        "left_to_right", "in which the positions are sampled; pixels row by row, from left to right"
    )
    positions: Literal["masked", "revealed"] = setting(
        "masked",
        "that are sampled together: all that are masked, of which a step keeps what it reveals, or those alone, for less",
    )
    context: int = setting(
        2,
        "positions on each side (of pixels rows and columns) whose tokens, as far as they are known, are read directly",
    )
    freeze_backbone: bool = setting(True, "whether the teacher's weights stay as they are, and λ's alone are trained")

    has_marginals: ClassVar[bool] = False
    reads_features: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, 1, "layers")
        at_least(self, 0, "candidates", "context")

    @property
    def usual_sampler(self) -> str:
        """See `MixtureSettings`: in its own order, in which what a call keeps depends on nothing that it does not keep."""
        return "left_to_right" if (self.order, self.positions) == ("left_to_right", "masked") else "ancestral"

    def wrap(self, network: Network) -> "SequentialMixture":
        """See `MixtureSettings.wrap`."""
        masked = getattr(network.config, "process", "masked") == "masked"
        check(masked, "mixture", "sequential", "another over a network of uniform noise, where all is unknown")
        together = network.image_shape is None or self.positions == "masked"
        check(together, "mixture.positions", self.positions, "masked for a U-Net: no step reveals a pixel")
        return SequentialMixture(self, network)


@dataclass(frozen=True)
class Ordered:
    """N positions of each of B sequences in the order in which they are sampled; of some sequences the last are none of them."""

    place: Int64[Tensor, "B N"]
    is_asked: Bool[Tensor, "B N"]
    rank: Int64[Tensor, "B D"]  # of each position; N where it is none

    @classmethod
    def of(cls, where: Bool[Tensor, "B D"], key: Float[Tensor, "B D"]) -> "Ordered":
        """The positions `where`, by rising keys."""
        count = max(1, int(where.sum(1).max()))
        place_BN = key.masked_fill(~where, torch.inf).sort(dim=1, stable=True)[1][:, :count]
        is_asked_BN = where.gather(1, place_BN)
        rank_BN = torch.arange(count, device=key.device).expand_as(place_BN).masked_fill(~is_asked_BN, count)
        rank_BD = torch.full_like(place_BN[:, :1], count).expand_as(where).scatter(1, place_BN, rank_BN)
        return cls(place_BN, is_asked_BN, rank_BD)

    @property
    def distance(self) -> Int64[Tensor, "B N"]:
        """From the position before to each, 0 for the first, within what is told apart; counted from 0."""
        step_BP = (self.place[:, 1:] - self.place[:, :-1]).clamp(-_FURTHEST, _FURTHEST)
        return F.pad(step_BP, (1, 0)) + _FURTHEST


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
        self.of_distance = nn.Embedding(2 * _FURTHEST + 1, width)
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


@dataclass(frozen=True)
class Seen(Rows):
    """What the network says of each position by itself, L = 1, and what the causal layers read of it."""

    context: Float[Tensor, "B D W"]
    unknown: Bool[Tensor, "B D"]


@dataclass(frozen=True)
class SequentialRows(Rows):
    """What the network says of each position by itself, L = 1, and the head that says how they go together.

    Where it is asked about positions one by one (their marginals, divergences, the product) it answers for each as if no other were
    sampled with it: with the network's own distribution. `x_t` is as the head reads it. `order` holds the keys by which positions are
    ordered, one set a λ, or one for all; `u` the uniforms of λ by which positions of `whole` are sampled of which no target is given.
    """

    context: Float[Tensor, "B D W"]
    head: SequentialHead
    x_t: Int64[Tensor, "B D"]
    order: Float[Tensor, "B J D"]
    u: Float[Tensor, "B K D"]
    candidates: int
    whole: Bool[Tensor, "B D"]  # positions that are sampled whatever is asked for
    is_product: ClassVar[bool] = False

    def read(
        self,
        positions: Positions,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]] = (),
        *,
        components: bool = False,
        chunk_rows: int = 0,
    ) -> Reading:
        """See `Rows.read`: `joint` is the mean over λ. Positions of `whole` without targets are sampled by it, without gradient."""
        frozen = not self.features.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            alone = super().read(positions, targets, distributions, components=components, chunk_rows=chunk_rows)
        where_BD = torch.zeros_like(self.whole)
        where_BD[positions.example, positions.position] = True
        some_left = any(bool((self._needed(where_BD, key_BD) & ~where_BD).any()) for key_BD in self.order.unbind(1))
        joint = []
        for target_M in targets.unbind(1):
            if some_left:
                log_p = [self._log_p_of_part(positions, target_M, k) for k in range(self.u.shape[1])]
            else:
                by_position = [self._log_p(positions, target_M, key_BD, chunk_rows) for key_BD in self.order.unbind(1)]
                log_p = [positions.per_example(log_p_M) for log_p_M in by_position]
            joint.append(torch.stack(log_p).logsumexp(0) - math.log(len(log_p)))
        return replace(alone, joint=torch.stack(joint, 1) if joint else alone.joint)

    @torch.no_grad()
    def _log_p_of_part(self, positions: Positions, target_M: Int64[Tensor, " M"], k: int) -> Float64[Tensor, " B"]:
        """log of the probability of the targets where all else is sampled by λ_k: its mean over λ is their probability."""
        where_BD, x_0 = torch.zeros_like(self.whole), self.x_t.clone()
        at = positions.example, positions.position
        where_BD[at], x_0[at] = True, target_M
        log_p_B = torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)

        def choose(at: At, logits_NS: Tensor) -> Tensor:
            log_p_NS = logits_NS.log_softmax(1)
            state_N = torch.where(where_BD[at], x_0[at], sample_categorical(log_p_NS.exp(), self.u[:, k][at]))
            log_p_B[at[0]] += log_p_NS.gather(1, state_N[:, None])[:, 0] * where_BD[at]
            return state_N

        sample_along(self._walk(where_BD, self.order[:, min(k, self.order.shape[1] - 1)]), choose)
        return log_p_B

    def _needed(self, where: Bool[Tensor, "B D"], key: Float[Tensor, "B D"]) -> Bool[Tensor, "B D"]:
        """The positions `where`, and those of `whole` that come before the last of them: on what comes after they do not depend."""
        last_B1 = key.masked_fill(~where, -torch.inf).amax(1, keepdim=True)
        return where | (self.whole & (key < last_B1))

    def _log_p(
        self, positions: Positions, target_M: Int64[Tensor, " M"], key_BD: Float[Tensor, "B D"], chunk_rows: int
    ) -> Float[Tensor, " M"]:
        """log p(x_i | x_1 ... x_{i-1}; x_t) of the targets, in the order of the keys."""
        at = positions.example, positions.position
        where_BD, x_0 = torch.zeros_like(self.x_t, dtype=torch.bool), self.x_t.clone()
        where_BD[at], x_0[at] = True, target_M
        ordered = Ordered.of(where_BD, key_BD)
        rank_M = ordered.rank[at]
        change_MH = self._change(ordered, x_0)[positions.example, rank_M] * (rank_M > 0)[:, None]
        features_MH = self.features[positions.example, 0, positions.position]
        if not self.few:
            changed_M1H, target_M1 = (features_MH + change_MH)[:, None], target_M[:, None]
            read = read_mixture(changed_M1H, positions.position, self.output_head, target_M1, chunk_rows=chunk_rows)
            return read.target_log_p[:, 0, 0]
        chunks = row_chunks(max(1, len(target_M)), rows_at_once(self.output_head, chunk_rows))
        read = functools.partial(checkpoint, self._log_p_of_few, use_reentrant=False)
        parts = [read(*(one[c] for one in (features_MH, change_MH, positions.position, target_M))) for c in chunks]
        return torch.cat(parts)

    def _change(self, ordered: Ordered, x_0: Int64[Tensor, "B D"]) -> Float[Tensor, "B N H"]:
        """What the head says of each position given those of `x_0` before; sequences of like counts of positions go together."""
        num_ranks, x_t, by_count_B = ordered.place.shape[1], self.x_t, ordered.is_asked.sum(1).argsort(stable=True)
        change_BNH = self.features.new_zeros(*ordered.place.shape, self.features.shape[3])
        for row_G in by_count_B.split(_TOGETHER):
            count = max(1, int(ordered.is_asked[row_G].sum(1).max()))
            place_GN, rank_N = ordered.place[row_G, :count], torch.arange(count, device=row_G.device)
            last_GN = F.pad(x_0[row_G].gather(1, place_GN[:, :-1]), (1, 0), value=self.head.nothing)
            is_known_GNC = self.head.beside(ordered.rank[row_G], place_GN, num_ranks) < rank_N[:, None]
            known_GNC, seen_GNC = (self.head.beside(x[row_G], place_GN) for x in (x_0, x_t))
            near_GNC = torch.where(is_known_GNC, known_GNC, seen_GNC)
            context_GNW = self.context[row_G[:, None], place_GN]
            part_GNH = self.head(context_GNW, place_GN, ordered.distance[row_G, :count], last_GN, near_GNC)
            change_BNH[row_G[:, None], rank_N] = part_GNH.to(change_BNH.dtype)  # of a U-Net the logits are wider
        return change_BNH

    @property
    def few(self) -> int:
        """How many states are changed; 0: all."""
        return self.candidates if self.candidates < self.output_head.num_states else 0

    def _log_p_of_few(self, features_NH: Tensor, change_NH: Tensor, position_N: Tensor, target_N: Tensor) -> Tensor:
        """log p(target): the candidates' weights are changed, the others' are not, and the normaliser is the sum of both."""
        logits_NS = self.output_head.logits(features_NH, position_N)
        candidate_NC = logits_NS.detach().topk(self.few, 1).indices
        changed_NC = self.output_head.target_logits(features_NH + change_NH, position_N, candidate_NC)
        of_rest_N = logits_NS.scatter(1, candidate_NC, -torch.inf).logsumexp(1)
        log_norm_N = torch.logaddexp(changed_NC.logsumexp(1), of_rest_N)
        is_target_NC = candidate_NC == target_N[:, None]
        own_N = logits_NS.gather(1, target_N[:, None])[:, 0]
        changed_N = changed_NC.masked_fill(~is_target_NC, 0.0).sum(1)
        return torch.where(is_target_NC.any(1), changed_N, own_N) - log_norm_N

    @torch.no_grad()
    def walk(self, where: Bool[Tensor, "B D"], rows: int) -> Walk:
        """See `Prediction.walk`: one position of each sequence after the other, those of `whole` before the last among them."""
        return self._walk(where, self.order[:, 0])

    def _walk(self, where: Bool[Tensor, "B D"], key: Float[Tensor, "B D"]) -> Walk:
        """Through these positions, and those they depend on, by rising keys; keys and values of the causal layers are kept."""
        ordered, tokens_BD = Ordered.of(self._needed(where, key), key), self.x_t.clone()
        row_B, distance_BN = torch.arange(len(where), device=where.device), ordered.distance
        last_B1 = torch.full_like(ordered.place[:, :1], self.head.nothing)
        kept = [Kept(ordered.place.shape[1]) for _ in self.head.blocks]
        for rank, unchanged in enumerate(self._unchanged(ordered)):
            place_B1, is_asked_B = ordered.place[:, rank : rank + 1], ordered.is_asked[:, rank]
            features_B1H, context_B1W = self.features[row_B, :, place_B1[:, 0]], self.context[row_B[:, None], place_B1]
            near_B1C, distance_B1 = self.head.beside(tokens_BD, place_B1), distance_BN[:, rank : rank + 1]
            change_B1H = self.head(context_B1W, place_B1, distance_B1, last_B1, near_B1C, kept)
            changed_NH = (features_B1H + change_B1H * bool(rank))[is_asked_B, 0]
            at = row_B[is_asked_B], place_B1[is_asked_B, 0]
            state_N = yield at, self._changed(changed_NH, at[1], *unchanged)
            assert state_N is not None
            tokens_BD[at] = state_N
            last_B1 = tokens_BD.gather(1, place_B1)

    def _unchanged(self, ordered: Ordered) -> Iterator[tuple[Tensor, ...]]:
        """For the positions of each rank the network's logits and its candidates, as many ranks at once as there is room for.

        Where all states are changed there is nothing to know of them.
        """
        is_asked_NB = ordered.is_asked.T
        if not self.few:
            yield from (() for _ in is_asked_NB)
            return
        for ranks in row_chunks(len(is_asked_NB), max(1, rows_at_once(self.output_head, 0) // is_asked_NB.shape[1])):
            rank_M, row_M = is_asked_NB[ranks].nonzero(as_tuple=True)
            place_M = ordered.place[row_M, rank_M + ranks.start]
            logits_MS = self.output_head.logits(self.features[row_M, 0, place_M], place_M)
            candidate_MC = logits_MS.topk(self.few, 1).indices
            counts = is_asked_NB[ranks].sum(1).tolist()
            yield from zip(logits_MS.split(counts), candidate_MC.split(counts), strict=True)

    def _changed(
        self, features_NH: Float[Tensor, "N H"], position_N: Int64[Tensor, " N"], *unchanged: Tensor
    ) -> Float[Tensor, "N S"]:
        """The logits, given the changed features."""
        if not unchanged:
            return self.output_head.logits(features_NH, position_N)
        logits_NS, candidate_NC = unchanged
        changed_NC = self.output_head.target_logits(features_NH, position_N, candidate_NC)
        return logits_NS.scatter(1, candidate_NC, changed_NC)


class SequentialMixture(Mixture):
    """`latent_head` behind a transformer, or behind a U-Net."""

    settings: SequentialSettings

    def __init__(self, settings: SequentialSettings, network: Network) -> None:
        super().__init__(settings, network, shares_backbone=settings.freeze_backbone)
        kind = SequentialHead if network.image_shape is None else PixelHead
        self.latent_head = kind(network, layers=settings.layers, context=settings.context)

    @property
    def joint_over(self) -> str:
        """See `Mixture.joint_over`."""
        return self.settings.positions

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """See `Mixture.sample_latents`: one float64 uniform (B, L, 1) a sample, of which the order is made where it is random.

        The uniforms of the tokens are the sampler's; those that likelihoods of a part of the positions need are made of λ.
        """
        check(num_lambdas >= 1, "num_lambdas", num_lambdas, "at least 1")
        return Latents(uniform(rng, (num_batch, num_lambdas, 1), device))

    def training_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> Latents:
        """See `Mixture.training_latents`."""
        return self.sample_latents(num_batch, self.num_components(num_lambdas), rng, device)

    def num_components(self, limit: int) -> int:
        """See `Mixture.num_components`: one where λ has no part in what is read."""
        return 1 if (self.settings.order, self.settings.positions) == ("left_to_right", "revealed") else limit

    def num_calls(self, limit: int) -> int:
        """See `Mixture.num_calls`: 1, for all orders."""
        return 1

    @property
    def kept_beside(self) -> int:
        """See `Mixture.kept_beside`: the activations of the causal layers."""
        return 20 * self.settings.layers * self.network.width

    def forward(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Any = None, cond: Any = None, **known: Any
    ) -> Rows:
        """See `Mixture.forward`. A frozen network records no gradient, so that equal sequences share a row."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.shares_backbone):
            rows: Any = super().forward(x_t, t, lam, cond, **known)
        if lam is None:
            return rows
        x_t, num_positions = self.latent_head.seen(x_t), x_t.shape[1]
        if cond is not None and cond.shape == x_t.shape:  # segments, not classes: padding is no token
            x_t = torch.where(cond == 0, self.latent_head.nothing, x_t)
        key_BKD, u_BKD = code_uniforms(lam, 2 * num_positions).chunk(2, dim=2)
        if self.settings.order == "left_to_right":
            key_BKD = self.latent_head.keys(num_positions, x_t.device).expand(len(x_t), 1, -1)
        whole_BD = rows.unknown & (self.settings.positions == "masked")
        said = rows.features, rows.output_head, rows.context, self.latent_head
        return SequentialRows(*said, x_t, key_BKD, u_BKD, self.settings.candidates, whole_BD)

    def drive(self, stages: Any, lam: Latents) -> Seen:
        """See `Mixture.drive`: the network as it is."""
        features_BDH, head = stages.features(), stages.output_head
        if self.network.image_shape is None:
            return Seen(features_BDH[:, None], head, features_BDH, stages.unknown)
        context_BDW = stages.hidden.repeat(1, self.network.image_shape[2], 1)  # of each colour of a pixel the same
        room_BDH = F.pad(features_BDH, (0, head.num_states))
        return Seen(room_BDH[:, None], AddedLogits(head), context_BDW, stages.unknown)
