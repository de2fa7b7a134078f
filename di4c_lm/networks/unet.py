"""tauLDR's U-Net on images of ordered levels (Campbell et al. 2022), and the mixture student made of it (Di4C, section 5.1).

Parameters bear the names, shapes and order of the published checkpoints (without their `net.`). Position d of a sequence is
(channel · rows + row) · columns + column. Residual sums are divided by √2.
"""

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from di4c_lm.core.settings import Ints, at_least, check, section, setting
from di4c_lm.mixtures.base import Chained
from di4c_lm.mixtures.class_head import ClassHead
from di4c_lm.mixtures.code_chain import CodeChain
from di4c_lm.mixtures.code_head import MixtureHead
from di4c_lm.mixtures.coded_output import CodedOutput
from di4c_lm.mixtures.latent import Uniform, check_latents, latent_codebook, sample_latents, sinusoid
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.logistic_head import LogisticHead
from di4c_lm.networks.prediction import Rows
from di4c_lm.processes.denoiser import Prediction, widest

_TIME_SCALE = 1000.0
_PATHS = (
    "lemb_modules",
    "hlemb_modules",
    "tlam_mix",
    "h_t_lam_mix",
    "latent_codebook",
    "latent_head",
    "latent_output",
    "latent_colour",
)


@section
class UnetConfig:
    """tauLDR's U-Net (Campbell et al. 2022); the defaults are the published CIFAR-10 teacher's."""

    width: int = setting(128, "channels that the scales multiply")
    multipliers: Ints = setting(
        (1, 2, 2, 2), "channels of each scale over `width`; each has half the rows and columns of the one before"
    )
    res_blocks: int = setting(2, "residual blocks a scale on the way down; one more on the way up")
    attention_scale: int = setting(1, "the scale with attention in it, from 0, beside the attention in the middle")
    dropout: float = setting(0.1, "share of the activations dropped in training")

    def __post_init__(self) -> None:
        check(self.width >= 4 and self.width % 4 == 0, "width", self.width, "a multiple of 4, at least 4")
        many = len(self.multipliers) > 0 and min(self.multipliers) >= 1
        check(many, "multipliers", self.multipliers, "whole numbers of at least 1, one a scale")
        at_least(self, 1, "res_blocks")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        for channels in {self.width * multiplier for multiplier in self.multipliers}:
            groups = min(channels // 4, 32)
            check(
                channels % groups == 0, "width", self.width, f"such that {channels} channels fall into {groups} groups"
            )

    @property
    def time_conditioning(self) -> bool:
        """True: the network is told the time."""
        return True


def is_latent(name: str) -> bool:
    """Whether the parameter `name` belongs to the λ path."""
    return name.startswith(_PATHS) or ".dense1." in name


class UNet(nn.Module):
    """p(x_0 | x_t; λ), factored: `forward` returns (μ, log s) of each position and the logistic output head.

    With `latent` absent the network is a teacher, a product of its positions. With it λ, mixed with the time, and from the middle on with
    the mean over the pixels too, shifts each ResBlock: the published way, for which `path` has its published value. The shifts begin at 0.
    With path=head it is a string of codes, each of a window of pixels in all their colours, which a chain ties; behind the last ResBlock
    they add to (μ, log s) what `CodedOutput` makes of them, so that the network runs once for all codes (see `MixtureHead`). With
    path=classes it is a string of classes of levels (see `ClassHead`), whose chain goes through the pixels row by row, to and fro, and
    through the colours of each.
    """

    def __init__(
        self,
        model: UnetConfig,
        *,
        shape: tuple[int, int, int],
        num_states: int = 256,
        latent: LatentConfig | None = None,
    ) -> None:
        super().__init__()
        _check(model, shape, latent)
        self.config = model
        self.shape = shape  # rows, columns, channels
        self.num_states = num_states
        self.latent = latent
        self.activation_checkpointing = False
        width, mixed, colours = model.width, latent is not None and latent.path == "token", shape[2]
        embedding = 4 * width
        channels = [width * multiplier for multiplier in model.multipliers]
        self.temb_modules = two_linear(width, embedding)
        if mixed:
            self.lemb_modules = two_linear(width, embedding)
            self.hlemb_modules = two_linear(width, embedding)
            self.tlam_mix = nn.Linear(2 * width, width)
        self.input_conv = nn.Conv2d(colours, width, 3, padding=1)
        self.downsampling_modules, skips = down_path(model, channels, embedding, latent=mixed)
        if mixed:
            self.h_t_lam_mix = nn.Linear(2 * width + channels[-1], width)
        self.middle_modules = nn.ModuleList(
            [
                ResBlock(channels[-1], channels[-1], embedding, model.dropout, latent=mixed),
                Attention(channels[-1]),
                ResBlock(channels[-1], channels[-1], embedding, model.dropout, latent=mixed),
            ]
        )
        self.upsampling_modules = up_path(model, channels, skips, embedding, latent=mixed)
        self.output_modules = nn.ModuleList(
            [group_norm(channels[0]), zeroed(nn.Conv2d(channels[0], 2 * colours, 3, padding=1))]
        )
        if latent is not None and latent.path == "head":
            self.latent_head = MixtureHead(latent, channels[0])
            self.latent_output = CodedOutput(
                channels[0], places=shape[0] * shape[1], colours=colours, scale=latent.init_scale
            )
        elif latent is not None and latent.path == "classes":
            self.latent_head = ClassHead(latent, channels[0], num_states)
            self.latent_colour = nn.Embedding(colours, channels[0])
        elif latent is not None and latent.law == "codebook":
            self.latent_codebook = latent_codebook(latent, width)

    @property
    def length(self) -> int:
        """D, positions a sequence."""
        return math.prod(self.shape)

    def sample_latents(self, num_batch: int, num_lambdas: int, uniform: Uniform) -> Tensor | None:
        """L draws of λ a sequence, (B, L, 1); None for a network without λ."""
        if self.latent is None:
            return None
        return sample_latents(self.latent, num_batch, num_lambdas, uniform)

    def forward(
        self,
        x_t: Int64[Tensor, "B D"],
        t: Float[Tensor, " B"],
        lam: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> Prediction:
        """Predict x_0 from `x_t` at times `t`, once for each of the L rows of `lam` (B, L, 1). Classes (`cond`) are not looked at.

        Without `lam` a student's λ path is left out, and the prediction is that of the teacher it was made from. Raises `ValueError` for
        sequences that are no image of this size, and where `lam` is given to a network without λ, or is of another shape.
        """
        check_latents(x_t, lam, self.latent)
        if x_t.shape[1] != self.length:
            rows, columns, colours = self.shape
            raise ValueError(
                f"x_t: expected {self.length} positions, images of {rows} x {columns} pixels in {colours} channels, got "
                f"{x_t.shape[1]}"
            )
        if self.latent is not None and self.latent.path == "head" and lam is not None:
            return self._by_head(x_t, t, lam)
        if self.latent is not None and self.latent.path == "classes" and lam is not None:
            return self._by_classes(x_t, t, lam)
        num_lambdas = 1 if lam is None else lam.shape[1]
        centred_NCRQ, out_NCRQ, _ = self._outputs(x_t, t, lam)
        return Rows(
            _features(centred_NCRQ.flatten(1), out_NCRQ.flatten(1)).unflatten(0, (-1, num_lambdas)), self.output_head()
        )

    def _by_head(self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Tensor) -> Prediction:
        """One run of the network, and what each code adds."""
        centred_BCRQ, out_BKRQ, h_BCRQ = self._outputs(x_t, t, None)
        h_BPC = h_BCRQ.flatten(2).transpose(1, 2)
        modulation, chain = self.latent_head(h_BPC, lam)
        added_BLPK = self.latent_output(h_BPC[:, None], modulation)
        out_BLKP = out_BKRQ.flatten(2)[:, None] + added_BLPK.transpose(2, 3).to(out_BKRQ.dtype)
        features = _features(centred_BCRQ.flatten(1)[:, None], out_BLKP.flatten(2))
        if chain is not None:
            chain = CodeChain(chain.log_step, chain.window, h_BPC.shape[1])
        head = self.output_head()
        return Rows(features, head) if chain is None else Chained(features, head, chain)

    def _by_classes(self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Tensor) -> Prediction:
        """One run of the network, and the classes behind it."""
        centred_BCRQ, out_BKRQ, h_BCRQ = self._outputs(x_t, t, None)
        features = _features(centred_BCRQ.flatten(1), out_BKRQ.flatten(1))
        h_BPC = h_BCRQ.flatten(2).transpose(1, 2)
        context_BDC = (F.layer_norm(h_BPC, h_BPC.shape[-1:])[:, None] + self.latent_colour.weight[:, None]).flatten(
            1, 2
        )
        is_open = torch.ones_like(x_t, dtype=torch.bool)
        order = to_and_fro(self.shape).to(x_t.device)
        return self.latent_head(features, is_open, self.output_head(), lam, context=context_BDC, order=order)

    def output_head(self) -> LogisticHead:
        """The discretised logistic; it has no parameters."""
        return LogisticHead(self.num_states)

    def _outputs(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Tensor | None
    ) -> tuple[Float[Tensor, "N C R Q"], Float[Tensor, "N K R Q"], Float[Tensor, "N W R Q"]]:
        """The image on [-1, 1] and the K = 2 numbers a colour, in at least float32; and what these were made of."""
        dtype, wide = self.input_conv.weight.dtype, widest(self.input_conv.weight.dtype)
        rows, columns, colours = self.shape
        centred_BCRQ = (x_t.to(wide) * (2 / (self.num_states - 1)) - 1).view(-1, colours, rows, columns)
        angle_BE = sinusoid(_TIME_SCALE * t, self.config.width).to(dtype)
        time_BE = two_layers(self.temb_modules, angle_BE)
        h = self.input_conv(centred_BCRQ.to(dtype))
        lam_N, embedded, mean = None, None, centred_BCRQ
        if lam is not None:
            h, angle_BE, time_BE, mean = (
                tensor.repeat_interleave(lam.shape[1], 0) for tensor in (h, angle_BE, time_BE, centred_BCRQ)
            )
            lam_N = self._latent_features(lam).to(dtype)
            embedded = two_layers(self.lemb_modules, F.silu(self.tlam_mix(torch.cat([lam_N, angle_BE], 1))))
        skips = [h]
        for module in self.downsampling_modules:
            h = self._run(module, h, time_BE, embedded)
            if isinstance(module, Attention):
                skips[-1] = h
            else:
                skips.append(h)
        if lam_N is not None:
            seen = torch.cat([lam_N, angle_BE, h.mean((2, 3))], 1)
            embedded = two_layers(self.hlemb_modules, F.silu(self.h_t_lam_mix(seen)))
        for module in self.middle_modules:
            h = self._run(module, h, time_BE, embedded)
        for module in self.upsampling_modules:
            given = torch.cat([h, skips.pop()], 1) if isinstance(module, ResBlock) else h
            h = self._run(module, given, time_BE, embedded)
        norm, conv = self.output_modules
        return mean, conv(F.silu(norm(h))).to(wide), h

    def _run(self, module: nn.Module, x: Tensor, time: Tensor, lam: Tensor | None) -> Tensor:
        args = (x, time, lam) if isinstance(module, ResBlock) else (x,)
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *args, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return module(*args)

    def _latent_features(self, lam: Tensor) -> Float[Tensor, "N C"]:
        flat = lam.flatten(0, 1)[:, 0]
        if self.latent is not None and self.latent.law == "codebook":
            return self.latent_codebook(flat)
        return sinusoid(1000.0 * flat, self.config.width)


@functools.cache
def to_and_fro(shape: tuple[int, int, int]) -> Int64[Tensor, " D"]:
    """The positions of an image (rows, columns, channels) row by row, each second row from right to left, a pixel's colours together."""
    rows, columns, colours = shape
    position_RQC = torch.arange(math.prod(shape)).view(colours, rows, columns).permute(1, 2, 0).clone()
    position_RQC[1::2] = position_RQC[1::2].flip(1)
    return position_RQC.flatten()


def _features(centred: Float[Tensor, "*_N D"], out: Float[Tensor, "*N twoD"]) -> Float[Tensor, "*N D 2"]:
    """(μ, log s) of each position; `centred` is the same for all of a row's codes where it has 1 in their place."""
    shift, log_scale = out.chunk(2, dim=-1)
    return torch.stack([torch.tanh(centred + shift), log_scale], -1)


def _check(model: UnetConfig, shape: tuple[int, int, int], latent: LatentConfig | None) -> None:
    halvings = 2 ** (len(model.multipliers) - 1)
    if shape[2] < 1 or min(shape) < 1 or shape[0] % halvings or shape[1] % halvings:
        raise ValueError(
            f"images of shape {shape} (rows, columns, channels) do not fit model.multipliers={model.multipliers}: allowed are "
            f"rows and columns that are multiples of {halvings}"
        )
    if latent is None:
        return
    if latent.path not in ("token", "head", "classes") or latent.inject_at != 0:
        raise ValueError(
            f"lambda.path={latent.path!r} with lambda.inject_at={latent.inject_at} is impossible for a U-Net: allowed are "
            "path=token, the published way, path=head and path=classes, with inject_at=0"
        )
    if latent.law == "gaussian":
        raise ValueError(
            "lambda.law='gaussian' is impossible for a U-Net: allowed are uniform, stratified and codebook"
        )


def group_norm(channels: int) -> nn.GroupNorm:
    """Of 32 groups, or of fewer with four channels each."""
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer, which begins silent."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class NIN(nn.Module):
    """A linear map of the channels at each pixel: x W + b."""

    def __init__(self, width_in: int, width_out: int, *, zero: bool = False) -> None:
        super().__init__()
        bound = 0.0 if zero else math.sqrt(3 / ((width_in + width_out) / 2))
        self.W = nn.Parameter(torch.empty(width_in, width_out).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: Float[Tensor, "N C R Q"]) -> Float[Tensor, "N K R Q"]:
        """The same image with other channels."""
        return torch.einsum("ncrq,ck->nkrq", x, self.W) + self.b[:, None, None]


class Attention(nn.Module):
    """One head over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0 = NIN(channels, channels)
        self.NIN_1 = NIN(channels, channels)
        self.NIN_2 = NIN(channels, channels)
        self.NIN_3 = NIN(channels, channels, zero=True)

    def forward(self, x: Float[Tensor, "N C R Q"]) -> Float[Tensor, "N C R Q"]:
        """(x + attention) / √2."""
        normed = self.GroupNorm_0(x)
        q, k, v = (nin(normed).flatten(2).transpose(1, 2) for nin in (self.NIN_0, self.NIN_1, self.NIN_2))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return (x + self.NIN_3(mixed)) * math.sqrt(0.5)


class ResBlock(nn.Module):
    """Two convolutions, between them the time's shift, and λ's where there is one."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dropout: float, *, latent: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.groupnorm0 = group_norm(channels_in)
        self.conv0 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.dense0 = nn.Linear(embedding, channels_out)
        self.dense1 = zeroed(nn.Linear(embedding, channels_out)) if latent else None
        self.groupnorm1 = group_norm(channels_out)
        self.conv1 = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.nin = NIN(channels_in, channels_out) if channels_in != channels_out else None

    def forward(
        self, x: Float[Tensor, "N C R Q"], time: Float[Tensor, "N E"], lam: Float[Tensor, "N E"] | None
    ) -> Float[Tensor, "N K R Q"]:
        """(x + what the convolutions make of it) / √2."""
        h = self.conv0(F.silu(self.groupnorm0(x)))
        shift = self.dense0(F.silu(time))
        if lam is not None and self.dense1 is not None:
            shift = shift + self.dense1(F.silu(lam))
        h = F.silu(self.groupnorm1(h + shift[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training) if self.dropout else h)
        return ((x if self.nin is None else self.nin(x)) + h) * math.sqrt(0.5)


class Downsample(nn.Module):
    """Half the rows and columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "N C R Q"]) -> Float[Tensor, "N C r q"]:
        """A convolution of stride 2, one row and column of zeros behind."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the rows and columns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "N C r q"]) -> Float[Tensor, "N C R Q"]:
        """Each pixel four times, then a convolution."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def two_linear(width: int, embedding: int) -> nn.ModuleList:
    """What `two_layers` goes through."""
    return nn.ModuleList([nn.Linear(width, embedding), nn.Linear(embedding, embedding)])


def two_layers(layers: nn.ModuleList, x: Float[Tensor, "N C"]) -> Float[Tensor, "N E"]:
    """Linear, SiLU, linear."""
    first, second = layers
    return second(F.silu(first(x)))


def down_path(
    model: UnetConfig, channels: list[int], embedding: int, *, latent: bool
) -> tuple[nn.ModuleList, list[int]]:
    """The modules, and the channels of each state that the up path takes in again."""
    modules: list[nn.Module] = []
    skips, here = [model.width], model.width
    for scale, wanted in enumerate(channels):
        for _ in range(model.res_blocks):
            modules.append(ResBlock(here, wanted, embedding, model.dropout, latent=latent))
            here = wanted
            skips.append(here)
            if scale == model.attention_scale:
                modules.append(Attention(here))
        if scale < len(channels) - 1:
            modules.append(Downsample(here))
            skips.append(here)
    return nn.ModuleList(modules), skips


def up_path(model: UnetConfig, channels: list[int], skips: list[int], embedding: int, *, latent: bool) -> nn.ModuleList:
    """The modules, each ResBlock reading one of the states of the down path beside its own."""
    modules: list[nn.Module] = []
    skips, here = list(skips), channels[-1]
    for scale in reversed(range(len(channels))):
        for _ in range(model.res_blocks + 1):
            modules.append(ResBlock(here + skips.pop(), channels[scale], embedding, model.dropout, latent=latent))
            here = channels[scale]
            if scale == model.attention_scale:
                modules.append(Attention(here))
        if scale > 0:
            modules.append(Upsample(here))
    return nn.ModuleList(modules)
