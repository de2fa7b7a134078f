"""What a network is to the rest: a prediction of L rows of equal weight, and a pass in stages that a mixture can drive.

And what networks share: attention without a mask, by PyTorch's kernels or by flash-attn, and embeddings of positions and times.
"""

import importlib.util
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from di4c_lm.losses.reading import PositionReading, Reading, mixture_marginals, read_mixture
from di4c_lm.networks.lora import LoraSettings, adapt, merged
from di4c_lm.processes.denoiser import OutputHead, Positions, Prediction
from di4c_lm.processes.rng import Rng

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows(Prediction):
    """A mixture of L products with equal weights, one a row of the features; L = 1 is a product."""

    features: Float[Tensor, "B L D H"]
    output_head: OutputHead

    def read(
        self,
        positions: Positions,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]] = (),
        *,
        components: bool = False,
        chunk_rows: int = 0,
    ) -> Reading:
        """One pass over M positions of the B sequences.

        Args:
            targets: T states a position, whose joint and marginal probabilities are wanted.
            distributions: q_r at each position, normalised, without gradient.
            components: whether the components' divergence, from the first distribution, is wanted.
            chunk_rows: rows of logits held at once; 0: as many as suit the device.
        """
        log_weight = self.log_weight(positions)
        read = self.read_positions(
            positions, targets, distributions, log_weight, components=components, chunk_rows=chunk_rows
        )
        return self.summed(read, positions, log_weight)

    def log_weight(self, positions: Positions) -> Float[Tensor, "M L"] | None:
        """The logarithm of each row's weight at the positions; None: all are equal."""

    def read_positions(
        self,
        positions: Positions,
        targets: Int64[Tensor, "M T"],
        distributions: Sequence[Float[Tensor, "M S"]],
        log_weight: Float[Tensor, "M L"] | None,
        *,
        components: bool,
        chunk_rows: int,
    ) -> PositionReading:
        """What is read position by position."""
        return read_mixture(
            positions.features(self.features),
            positions.position,
            self.output_head,
            targets,
            distributions,
            log_weight=log_weight,
            component_divergence=components,
            chunk_rows=chunk_rows,
        )

    def summed(self, read: PositionReading, positions: Positions, log_weight: Tensor | None) -> Reading:
        """The reading of each sequence, made of those of its positions."""
        return read.summed(positions)

    def marginals(
        self, positions: Positions, *, log_weight: Float[Tensor, "M L"] | None = None, chunk_rows: int = 0
    ) -> Float[Tensor, "M S"]:
        """The marginals, λ averaged out, at M positions, by other weights than its own if these are given; without gradient."""
        return mixture_marginals(
            positions.features(self.features),
            positions.position,
            self.output_head,
            log_weight=self.log_weight(positions) if log_weight is None else log_weight,
            chunk_rows=chunk_rows,
        )

    def under(self, choice: Int64[Tensor, "B N D"]) -> "Rows":
        """What is said at each position under the row, or the code, that is chosen for it: N choices a sequence."""
        index_BNDH = choice[..., None].expand(-1, -1, -1, self.features.shape[3])
        return Rows(self.features.gather(1, index_BNDH), self.output_head)

    def independent(self, rng: torch.Generator) -> "Rows":
        """One row in which each position is said under a component of its own choice, so that positions are independent."""
        num_batch, num_rows, num_positions, _ = self.features.shape
        choice_BD = torch.randint(num_rows, (num_batch, num_positions), generator=rng).to(self.features.device)
        return self.under(choice_BD[:, None])


class Stages(ABC):
    """A network's pass over B sequences, stopped where a mixture brings in λ. `unknown`: the positions whose x_0 x_t does not tell.

    `segments`, where a sequence holds several records or padding: the number of the record at each position, from 1 on, 0 at padding.
    `asked`: the positions whose features will be read, where not all will; those of the others may be 0.
    """

    unknown: Bool[Tensor, "B D"]
    output_head: OutputHead
    segments: Int64[Tensor, "B D"] | None = None
    asked: Bool[Tensor, "B D"] | None = None

    @abstractmethod
    def features(self) -> Float[Tensor, "N D H"]:
        """Run what is left; the features that the output head reads."""


@dataclass(frozen=True)
class Joined:
    """One more token behind each of N rows, which are `num_lambdas` times those of a stream, or where these share rows those of `row_B`."""

    token: Float[Tensor, "N 1 H"]
    row_B: Int64[Tensor, " B"] | None
    num_lambdas: int

    def behind(self, x: Float[Tensor, "U P K"], of_token: Float[Tensor, "N 1 K"]) -> Float[Tensor, "N Q K"]:
        """The N rows, with what was made of the token behind what was made of the stream."""
        x_BPK = x if self.row_B is None else x[self.row_B]
        return torch.cat([x_BPK.repeat_interleave(self.num_lambdas, 0), of_token], 1)


class BlockStages(Stages):
    """The stages of a transformer: its blocks, one after the other, and of the last one attention and MLP apart.

    `x` is the residual stream of N rows: one a sequence, or where equal sequences share a row fewer, and more after `repeat`.
    """

    x: Float[Tensor, "N P H"]
    given: tuple[Any, ...] = ()  # what both halves of each block read beside `x` and the shifts and scales

    def __init__(
        self, network: Any, blocks: nn.Module, unknown: Bool[Tensor, "B D"], row_B: Int64[Tensor, " B"] | None
    ) -> None:
        self.network = network
        self.unknown = unknown
        self.output_head = network.output_head()
        self._blocks: Any = blocks  # each a `TransformerBlock`
        self._row_B = row_B
        self._next = 0
        self._joined: Joined | None = None  # what the next block joins to the stream
        self._chosen_NQ: Int64[Tensor, "N Q"] | None = None  # the positions behind the last block, where not all

    @property
    def num_positions(self) -> int:
        """D."""
        return self.unknown.shape[1]

    def run(
        self, stop: int | None = None, shift_scale: Callable[[int], Float[Tensor, "N fourH"]] | None = None
    ) -> None:
        """The blocks that are left, or those of them below `stop`, the norms of block k scaled and shifted by `shift_scale(k)`."""
        end = len(self._blocks) if stop is None else stop
        if self._next == 0 < end:
            self._enter()
        for index in range(self._next, end):
            how: dict[str, Any] = {} if self._joined is None else {"joined": self._joined}
            if index == len(self._blocks) - 1 and self.asked is not None and self.narrows:
                self._chosen_NQ = self._choose(self.asked)
                how |= {} if self._chosen_NQ is None else {"chosen": self._chosen_NQ}
            block = self._blocks[index]
            self._through(partial(block, **how) if how else block, None if shift_scale is None else shift_scale(index))
            self._joined = None
        self._next = max(self._next, end)

    @property
    def narrows(self) -> bool:
        """Whether the last block can be run at some positions alone, its attention reading all."""
        return False

    def repeat(self, num_lambdas: int) -> None:
        """Each sequence `num_lambdas` times."""
        self._unshare()
        self._take(lambda row: row.repeat_interleave(num_lambdas, 0))

    def join(self, num_lambdas: int, token: Float[Tensor, "N H"]) -> None:
        """Each sequence `num_lambdas` times, and one more token behind each, without a position."""
        self.repeat(num_lambdas)
        self.x = torch.cat([self.x, token[:, None].to(self.x.dtype)], 1)

    def features(self) -> Float[Tensor, "N D H"]:
        """See `Stages.features`."""
        self.run()
        features = self._features(None)
        if self._chosen_NQ is not None:
            whole_NDH = features.new_zeros(len(features), self.num_positions, features.shape[2])
            features = whole_NDH.scatter(1, self._chosen_NQ[..., None].expand(-1, -1, features.shape[2]), features)
        return features if self._row_B is None else features[self._row_B]

    def before_last_mlp(self) -> Float[Tensor, "B D H"]:
        """The stream behind all attention, at the positions alone; what follows is made of each position by itself."""
        self.run(len(self._blocks) - 1)
        if len(self._blocks) == 1:
            self._enter()
        self._through(self._blocks[-1].mix, None)
        self._unshare()
        self.x = self.x[:, : self.num_positions]
        return self.x

    def last_mlp(self, shift_scale: Float[Tensor, "N L P fourH"]) -> Float[Tensor, "B L D H"]:
        """From `before_last_mlp` to the features, the norms of the last MLP and of the output scaled and shifted in L ways."""
        num_batch, num_lambdas = len(self.x), shift_scale.shape[1]
        self.repeat(num_lambdas)
        rows = shift_scale.to(self.x.dtype).expand(num_batch, -1, -1, -1).flatten(0, 1)
        of_mlp, of_output = rows.chunk(2, dim=2)
        self._through(self._blocks[-1].feed, of_mlp)
        return self._features(of_output).unflatten(0, (num_batch, num_lambdas))

    def _choose(self, asked_BD: Bool[Tensor, "B D"]) -> Int64[Tensor, "N Q"] | None:
        """Of each row of the stream as many positions as are asked for in any, those that are asked for first; None for all."""
        num_rows, row_B = len(self.x if self._joined is None else self._joined.token), self._row_B
        if row_B is None:
            asked_ND = asked_BD.repeat_interleave(num_rows // len(asked_BD), 0)
        else:  # of all sequences that share the row
            count_ND = torch.zeros(num_rows, asked_BD.shape[1], device=asked_BD.device)
            asked_ND = count_ND.index_add(0, row_B, asked_BD.float()) > 0
        most, order_ND = int(asked_ND.sum(1).max()), asked_ND.int().argsort(dim=1, descending=True, stable=True)
        return None if most == self.num_positions else order_ND[:, : max(1, most)]

    def _through(self, part: Callable[..., Tensor], shift_scale: Tensor | None) -> None:
        self.x = self.network.run(part, self.x, shift_scale, *self.given)

    def _unshare(self) -> None:
        if self._row_B is not None:
            row_B, self._row_B = self._row_B, None
            self._take(lambda row: row[row_B])

    def _take(self, rows: Callable[[Tensor], Tensor]) -> None:
        """Other rows in place of those of the stream."""
        self.x = rows(self.x)

    def _enter(self) -> None:
        """What stands before the first block."""

    @abstractmethod
    def _features(self, shift_scale: Float[Tensor, "N Q twoH"] | None) -> Float[Tensor, "N D H"]: ...


class AttentionBlock(nn.Module):
    """Attention and an MLP: what its matrices are trained by may differ from all else (`optim=muon`)."""


def attention_blocks(module: nn.Module) -> list[AttentionBlock]:
    """The blocks in `module`, in order."""
    return [block for block in module.modules() if isinstance(block, AttentionBlock)]


def block_matrices(module: nn.Module) -> set[str]:
    """Names of the matrices of attention and MLPs in the blocks of `module`; those of shifts and scales, and of adapters, are none."""
    return {
        f"{prefix}.{name}"
        for prefix, block in module.named_modules()
        if isinstance(block, AttentionBlock)
        for name, parameter in block.named_parameters()
        if parameter.ndim == 2 and not any(part in name for part in ("adaLN", ".lora_"))
    }


class TransformerBlock(AttentionBlock):
    """Its halves, attention and MLP, each behind a norm that may be scaled and shifted."""

    mix: Callable[..., Tensor]  # (x, shifts and scales (N, Q, 2H) or None, *given) to the stream behind attention
    # where its stages say `narrows`, with `chosen` at these positions alone; with `joined` a token more
    feed: Callable[..., Tensor]  # the same behind the MLP, each position by itself

    def forward(
        self,
        x: Float[Tensor, "N P H"],
        shift_scale: Float[Tensor, "N fourH"] | None,
        *given: Any,
        **how: Any,
    ) -> Float[Tensor, "R Q H"]:
        """The residual stream after this block; `how` is what its attention is told beside."""
        first, second = (None, None) if shift_scale is None else shift_scale[:, None].chunk(2, dim=2)
        return self.feed(self.mix(x, first, *given, **how), second, *given)


Drive = Callable[[Any], Rows]  # from the stages of a pass to the prediction


def product(stages: Stages) -> Rows:
    """The prediction of the network by itself."""
    return Rows(stages.features()[:, None], stages.output_head)


class Network(nn.Module, ABC):
    """p(x_0 | x_t) as a product of positions: a denoiser without λ, which a mixture may drive in stages.

    `sizes` are what its class is built from beside `config`.
    """

    has_latents: ClassVar[bool] = False
    is_told_positions: ClassVar[bool] = True  # see `predict_at`
    shares_backbone: ClassVar[bool] = False
    joined_share: ClassVar[float] = 0.0  # of a block's products, what is made once where a token joins equal rows
    takes_shifts: ClassVar[bool] = False  # whether λ can shift it inside, in the published way of the U-Net
    config: Any
    sizes: dict[str, Any]
    num_states: int
    width: int  # H of the features before the output
    image_shape: tuple[int, int, int] | None = None  # of a network on pixels: rows, columns, channels

    def __init__(self) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.matmul_dtype: torch.dtype | None = None
        self.is_adapted = False  # by LoRA

    def forward(
        self,
        x_t: Int64[Tensor, "B D"],
        t: Float[Tensor, " B"],
        lam: Any = None,
        cond: Int64[Tensor, "B *each"] | None = None,
        *,
        at: Bool[Tensor, "B D"] | None = None,
        drive: Drive = product,
        share: bool = False,
    ) -> Rows:
        """Predict x_0 from x_t at times t, given classes (B,) where the network knows any, or of text `Stages.segments` (B, D).

        Args:
            lam: None: a network by itself has no λ.
            at: the positions that will be read, where not all will; at the others the prediction may be of no use.
            drive: what makes the prediction of the pass's stages.
            share: whether equal sequences may share what is run before `drive` takes them apart; never where gradients or dropout do.
        """
        refuse_latents(lam)
        stages = self.stages(x_t, t, cond, share=share)
        stages.asked = at
        return drive(stages)

    @abstractmethod
    def stages(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], cond: Int64[Tensor, "B *each"] | None, *, share: bool
    ) -> Stages:
        """A pass that has not begun."""

    @abstractmethod
    def output_head(self) -> OutputHead:
        """The output head that its predictions carry."""

    def sample_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> None:
        """None: there is no λ."""

    def training_latents(self, num_batch: int, num_lambdas: int, rng: Rng, device: torch.device) -> None:
        """None, as `sample_latents`."""

    def num_components(self, limit: int) -> int:
        """1: there is no λ to sample."""
        return 1

    def num_calls(self, limit: int) -> int:
        """1, as `num_components`."""
        return 1

    def rows_by_block(self, num_lambdas: int) -> list[float]:
        """1 of each block: there is no λ."""
        return [1.0] * self.config.num_blocks

    usual_sampler: ClassVar[str] = "ancestral"  # see `MixtureSettings`
    kept_beside: ClassVar[int] = 0  # see `Mixture`
    joint_over: ClassVar[str] = "masked"

    def owns(self, name: str) -> bool:
        """Whether a tensor belongs to λ: none does."""
        return False

    learns_apart = owns  # whether a parameter belongs to λ

    def keep_exact(self) -> None:
        """Nothing: a network that is trained has masters of its own."""

    def tensors(self, state: Mapping[str, Tensor] | None = None, *, whole: bool = True) -> dict[str, Tensor]:
        """What a file holds, by its names; `state` holds parameters where the network's own are not the ones meant."""
        return self.merged(dict(self.state_dict()) if state is None else {**dict(self.named_buffers()), **state})

    def adapt(self, lora: LoraSettings) -> None:
        """From here on adapters alone are trained, and `tensors` merges them. Raises `ValueError` as `lora.adapt` does."""
        adapt(self, lora)
        self.is_adapted = True

    def merged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by the names in memory, adapters merged where there are any."""
        return merged(self, tensors) if self.is_adapted else tensors

    def load(self, tensors: Mapping[str, Tensor], *, assign: bool = False) -> None:
        """Take in what `tensors` gave."""
        self.load_state_dict(dict(tensors), strict=True, assign=assign)

    def run(self, part: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """A block or a half of one, whose inner activations are recomputed in the backward pass where the run asks for that."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return part(*inputs)

    def may_share(self) -> bool:
        """Whether equal rows have equal results and no gradient: no dropout, none recorded."""
        return not torch.is_grad_enabled() and not (self.training and getattr(self.config, "dropout", 0.0))


@dataclass(frozen=True)
class Within:
    """Which of P places see each other: those of one record, `segment` from 1 on; 0 is padding, -1 sees all records and is seen by all."""

    segment: Int64[Tensor, "N P"]

    @classmethod
    def of(cls, segments: Int64[Tensor, "N D"], num_extra: int) -> "Within":
        """Positions in records, and behind them places that are of none."""
        return cls(F.pad(segments, (0, num_extra), value=-1))

    @cached_property
    def starts(self) -> Bool[Tensor, "N P"]:
        """Where a stretch of one record, or of padding, begins."""
        return F.pad(self.segment[:, 1:] != self.segment[:, :-1], (1, 0), value=True)

    @cached_property
    def position(self) -> Int64[Tensor, "N P"]:
        """The place of each within its record; 0 outside of all."""
        place_P = torch.arange(self.segment.shape[1], device=self.segment.device)
        begun_NP = torch.where(self.starts, place_P, 0).cummax(1).values
        return (place_P - begun_NP).masked_fill(self.segment < 0, 0)

    @cached_property
    def mask(self) -> Bool[Tensor, "N 1 P P"]:
        """Whether a place sees another; padding sees padding."""
        here_NP1, there_N1P = self.segment[:, :, None], self.segment[:, None]
        sees_all, seen_by_all = (here_NP1 < 0) & (there_N1P != 0), there_N1P < 0
        return ((here_NP1 == there_N1P) | sees_all | seen_by_all)[:, None]

    @cached_property
    def is_stretches(self) -> bool:
        """Whether what sees each other stands together."""
        return bool((self.segment >= 0).all())

    @cached_property
    def ends(self) -> tuple[Int[Tensor, " K"], int]:
        """Of all rows, one behind the other, where each stretch ends, 0 before the first; and the longest."""
        begun_K = self.starts.flatten().nonzero()[:, 0]
        ends_K = F.pad(begun_K, (0, 1), value=self.segment.numel()).int()
        return ends_K, int(ends_K.diff().max())


@cache
def use_flash(choice: str) -> bool:
    """Whether flash-attn serves: `choice` is auto, sdpa or flash. Raises `ValueError` where flash is asked for and absent."""
    present = importlib.util.find_spec("flash_attn") is not None
    if choice == "flash" and not (present and torch.cuda.is_available()):
        missing = "a GPU" if present else "the package flash-attn (the extra `flash`)"
        raise ValueError(f"model.attention must be auto or sdpa without {missing}, got 'flash'")
    if choice == "auto" and not present:
        logger.info("flash-attn is not installed: attention runs on PyTorch's scaled_dot_product_attention")
    return choice != "sdpa" and present and torch.cuda.is_available()


def attend(
    q: Float[Tensor, "N D heads dim"],
    k: Float[Tensor, "N K groups dim"],
    v: Float[Tensor, "N K groups dim"],
    *,
    flash: bool = False,
    dropout: float = 0.0,
    causal: bool = False,
    within: Within | None = None,
) -> Float[Tensor, "N D heads dim"]:
    """softmax(q k^T / sqrt(dim)) v over all positions, those up to its own, or those `within`, with `dropout` on the weights, always on.

    Where there are fewer keys and values than queries, each serves as many heads of queries, one beside the other.
    `flash` needs half-precision tensors on a GPU, and of records that they stand together; others take PyTorch's path. On a CPU whose
    products are cast to bfloat16 it runs in float32: of short sequences its backward pass is twice as fast so.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), dropout=dropout, causal=causal, within=within)
    together = within is None or within.is_stretches
    if flash and together and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        import flash_attn  # pyright: ignore[reportMissingImports]

        if within is None:
            return flash_attn.flash_attn_func(q, k, v, dropout_p=dropout, causal=causal)
        (ends_K, longest), flat = within.ends, (one.flatten(0, 1) for one in (q, k, v))
        out = flash_attn.flash_attn_varlen_func(*flat, ends_K, ends_K, longest, longest, dropout_p=dropout)
        return out.view_as(q)
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    grouped, mask = q.shape[1] != k.shape[1], None if within is None else within.mask
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped)
    return out.transpose(1, 2)


class Rotary(torch.nn.Module):
    """Rotary positions of Su et al. (2021), halves not interleaved, base 10000; positions at and past `num_rotated` keep phase 0."""

    inv_freq: Tensor

    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        self.register_buffer("inv_freq", frequencies(dim, base))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":  # noqa: FBT001, FBT002 (torch's)
        """Casts leave the frequencies exact: rounded to bfloat16 they would turn late positions by radians."""
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != exact.dtype:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(
        self, num_rotated: int, num_extra: int, within: Within | None = None
    ) -> tuple[Float[Tensor, "*N P half"], Float[Tensor, "*N P half"]]:
        """See `phases`."""
        return phases(self.inv_freq, num_rotated, num_extra, within)

    def at(
        self, position: Int64[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape half"], Float[Tensor, "*shape half"]]:
        """Cosines and sines of these positions alone."""
        phase = position.float()[..., None] * self.inv_freq.float()
        return phase.cos(), phase.sin()


def frequencies(dim: int, base: float, device: torch.device | None = None) -> Float[Tensor, " half"]:
    """base^(-2k / dim), in float32: what each pair of a head's channels turns by from one position to the next."""
    place = torch.get_default_device() if device is None else device
    made_on = (
        torch.device("cpu") if place.type == "meta" else place
    )  # whose division takes half of PyTorch's compiler with it
    return (1.0 / base ** (torch.arange(0, dim, 2, device=made_on).float() / dim)).to(place)


def phases(
    inv_freq: Float[Tensor, " half"], num_rotated: int, num_extra: int, within: Within | None = None
) -> tuple[Float[Tensor, "*N P half"], Float[Tensor, "*N P half"]]:
    """Cosines and sines of `num_rotated` positions followed by `num_extra` that are not turned; each record begins anew."""
    device = inv_freq.device
    if within is not None:
        position = within.position
    else:
        position = torch.cat([torch.arange(num_rotated, device=device), torch.zeros(num_extra, device=device)])
    phase = position.float()[..., None] * inv_freq.float()
    return phase.cos(), phase.sin()


def rotate(
    x: Float[Tensor, "N P heads dim"], cos: Float[Tensor, "*N P half"], sin: Float[Tensor, "*N P half"]
) -> Float[Tensor, "N P heads dim"]:
    """Turn the pairs (x[i], x[i + dim/2]) by each position's phase."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rows_at(x: Float[Tensor, "N P *rest"], chosen: Int64[Tensor, "N Q"]) -> Float[Tensor, "N Q *rest"]:
    """Of each row what stands at the chosen places."""
    index = chosen.view(*chosen.shape, *[1] * (x.dim() - 2))
    return x.gather(1, index.expand(-1, -1, *x.shape[2:]))


def sinusoid(angle_N: Float[Tensor, " N"], dim: int = 128) -> Float[Tensor, "N dim"]:
    """[sin(a g_k), cos(a g_k)] with g_k = 10000^(-k / (dim/2 - 1)): the embedding of times, and of λ in the published students."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=angle_N.device) * (-math.log(10_000) / (half - 1)))
    phase = angle_N.float()[:, None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def refuse_latents(lam: object) -> None:
    """Raise `ValueError` where λ is given to a network by itself."""
    if lam is not None:
        raise ValueError(f"lam must be None for a network without λ, got {type(lam).__name__}")


class Downsample(nn.Module):
    """Half the rows and columns, by a convolution of stride 2 with one row and column of zeros behind."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "N C R Q"]) -> Float[Tensor, "N C r q"]:
        """The smaller image."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the rows and columns: each pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C r q"]) -> Float[Tensor, "N C R Q"]:
        """The larger image."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object) -> None:
    """Compare names and shapes, and see that values are finite; raise one `ValueError` that names `source` and lists all that is wrong."""
    complaints = [f"missing: {name} {_shape(expected[name])}" for name in expected if name not in found]
    complaints += [f"unknown: {name} {_shape(found[name])}" for name in found if name not in expected]
    for name in expected:
        if name not in found:
            continue
        if found[name].shape != expected[name].shape:
            complaints.append(f"misshapen: {name} is {_shape(found[name])}, expected {_shape(expected[name])}")
        elif not found[name].is_floating_point():
            complaints.append(f"not floating-point: {name} is {found[name].dtype}")
        elif count := not_finite(found[name]):
            complaints.append(f"not finite: {count} of the {found[name].numel()} values of {name}")
    if complaints:
        raise ValueError(f"{source}: {len(complaints)} tensors do not fit the network:\n  " + "\n  ".join(complaints))


def not_finite(tensor: Tensor) -> int:
    """How many values are infinite or NaN; 0 of a tensor without storage."""
    if tensor.is_meta:
        return 0
    wide = tensor.float() if tensor.itemsize == 1 else tensor  # 8-bit floats know no `isfinite`
    return tensor.numel() - int(wide.isfinite().sum())


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
