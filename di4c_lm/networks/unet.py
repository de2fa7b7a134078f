"""tauLDR's U-Net on images of ordered levels (Campbell et al. 2022), with or without the shifts by λ of Di4C (section 5.1).

Parameters bear the names, shapes and order of the published checkpoints (without their `net.`). Position d of a sequence is
(channel · rows + row) · columns + column. Residual sums are divided by √2.
"""

import itertools
import math
from collections import OrderedDict
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import Ints, at_least, check, section, setting
from di4c_lm.networks.base import (
    Downsample,
    Drive,
    Network,
    Rows,
    Stages,
    Upsample,
    product,
    sinusoid,
)
from di4c_lm.networks.logistic_head import LogisticHead
from di4c_lm.processes.denoiser import widest

_TIME_SCALE = 1000.0
_SHIFT_PARTS = ("lemb_modules", "hlemb_modules", "tlam_mix", "h_t_lam_mix")


@section
class UnetConfig:
    """tauLDR's U-Net (Campbell et al. 2022); the defaults are the published CIFAR-10 teacher's."""

    width: int = setting(128, "channels of the first scale, which `multipliers` multiply")
    multipliers: Ints = setting(
        (1, 2, 2, 2),
        "channels of each scale, as factors on `width`; a scale has half the rows and columns of the one before",
    )
    res_blocks: int = setting(2, "residual blocks per scale on the way down; one more on the way up")
    attention_scale: int = setting(1, "index of the scale that has attention, besides the attention in the middle")
    dropout: float = setting(0.1, "share of activations dropped in training")
    time_conditioning: ClassVar[bool] = True

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
    def depth(self) -> int:
        """Blocks on the way down."""
        return self.res_blocks * len(self.multipliers)

    @property
    def num_blocks(self) -> int:
        """Residual blocks on the way down, two in the middle, and one more a scale on the way up."""
        return 2 * self.depth + len(self.multipliers) + 2


class UNet(Network):
    """p(x_0 | x_t) as a product of positions, factored: (μ, log s) of each position and the logistic output head.

    With `shifted` features of λ, mixed with the time, and from the middle on with the mean over the pixels too, shift each ResBlock, in the
    published way. The shifts begin at 0.
    """

    takes_shifts: ClassVar[bool] = True

    def __init__(
        self, model: UnetConfig, *, shape: tuple[int, int, int], num_states: int = 256, shifted: bool = False
    ) -> None:
        super().__init__()
        halvings = 2 ** (len(model.multipliers) - 1)
        fits = min(shape) >= 1 and not shape[0] % halvings and not shape[1] % halvings
        allowed = (
            f"rows, columns, channels, the first two multiples of {halvings} by model.multipliers={model.multipliers}"
        )
        check(fits, "shape", shape, allowed)
        self.config = model
        self.sizes = {"shape": shape, "num_states": num_states}
        self.shape = self.image_shape = shape  # rows, columns, channels
        self.length = math.prod(shape)  # D
        self.width = model.width * model.multipliers[0]  # behind the last ResBlock
        self.num_states = num_states
        self.shifted = shifted
        width, colours = model.width, shape[2]
        embedding = 4 * width
        channels = [width * multiplier for multiplier in model.multipliers]
        self.temb_modules = two_linear(width, embedding)
        if shifted:
            self.lemb_modules = two_linear(width, embedding)
            self.hlemb_modules = two_linear(width, embedding)
            self.tlam_mix = nn.Linear(2 * width, width)
        self.input_conv = nn.Conv2d(colours, width, 3, padding=1)
        self.downsampling_modules, skips = down_path(model, channels, embedding, shifted=shifted)
        if shifted:
            self.h_t_lam_mix = nn.Linear(2 * width + channels[-1], width)
        self.middle_modules = nn.ModuleList(
            [
                ResBlock(channels[-1], channels[-1], embedding, model.dropout, shifted=shifted),
                Attention(channels[-1]),
                ResBlock(channels[-1], channels[-1], embedding, model.dropout, shifted=shifted),
            ]
        )
        self.upsampling_modules = up_path(model, channels, skips, embedding, shifted=shifted)
        self.output_modules = nn.ModuleList(
            [group_norm(channels[0]), zeroed(nn.Conv2d(channels[0], 2 * colours, 3, padding=1))]
        )

    @staticmethod
    def is_shift(name: str) -> bool:
        """Whether the parameter `name` belongs to the shifts by λ."""
        return name.startswith(_SHIFT_PARTS) or ".dense1." in name

    def forward(
        self,
        x_t: Int64[Tensor, "B D"],
        t: Float[Tensor, " B"],
        lam: Float[Tensor, "B L F"] | None = None,
        cond: Tensor | None = None,
        *,
        at: Bool[Tensor, "B D"] | None = None,
        drive: Drive = product,
        share: bool = False,
        inject_at: int = 0,
    ) -> Rows:
        """See `Network.forward`. With `lam`, features of λ that shift it from ResBlock `inject_at` on, once for each of L.

        What comes before the first of these shifts is run once for all L. Classes (`cond`) are not looked at.

        Raises `ValueError` for sequences that are no image of this size.
        """
        if lam is None or not self.shifted:
            return super().forward(x_t, t, lam, cond, at=at, drive=drive, share=share)
        centred_NCRQ, out_NCRQ, _ = self.outputs(x_t, t, lam, inject_at)
        features_NDF = _features(centred_NCRQ.flatten(1), out_NCRQ.flatten(1))
        return Rows(features_NDF.unflatten(0, (-1, lam.shape[1])), self.output_head())

    def stages(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], cond: Tensor | None, *, share: bool
    ) -> "UnetStages":
        """See `Network.stages`."""
        return UnetStages(self, x_t, t)

    def output_head(self) -> LogisticHead:
        """The discretised logistic; it has no parameters."""
        return LogisticHead(self.num_states)

    def outputs(
        self, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"], lam: Float[Tensor, "B L F"] | None, inject_at: int = 0
    ) -> tuple[Float[Tensor, "N C R Q"], Float[Tensor, "N K R Q"], Float[Tensor, "N W R Q"]]:
        """The image on [-1, 1] and the K = 2 numbers a colour, in at least float32; and what these were made of."""
        dtype, wide = self.input_conv.weight.dtype, widest(self.input_conv.weight.dtype)
        rows, columns, colours = self.shape
        if x_t.shape[1] != self.length:
            allowed = f"{self.length} positions, images of {rows} x {columns} pixels in {colours} channels"
            raise ValueError(f"x_t must have {allowed}, got {x_t.shape[1]}")
        centred_BCRQ = (x_t.to(wide) * (2 / (self.num_states - 1)) - 1).view(-1, colours, rows, columns)
        angle_BE = sinusoid(_TIME_SCALE * t, self.config.width).to(dtype)
        time_BE = self.temb_modules(angle_BE)
        lam_NC = None if lam is None else lam.flatten(0, 1).to(dtype)
        number_of_block = itertools.count()

        def run(module: nn.Module, x: Tensor, shift_NE: Tensor | None) -> Tensor:
            if not isinstance(module, ResBlock):
                return self.run(module, x)
            return self.run(module, x, time_BE, shift_NE if next(number_of_block) >= inject_at else None)

        h, shift_NE = self.input_conv(centred_BCRQ.to(dtype)), None
        if lam_NC is not None:
            seen = [lam_NC, repeated(angle_BE, len(lam_NC))]
            shift_NE = self.lemb_modules(F.silu(self.tlam_mix(torch.cat(seen, 1))))
        skips = [h]
        for module in self.downsampling_modules:
            h = run(module, h, shift_NE)
            if isinstance(module, Attention):
                skips[-1] = h
            else:
                skips.append(h)
        if lam_NC is not None:
            seen = [lam_NC, *(repeated(x, len(lam_NC)) for x in (angle_BE, h.mean((2, 3))))]
            shift_NE = self.hlemb_modules(F.silu(self.h_t_lam_mix(torch.cat(seen, 1))))
        for module in self.middle_modules:
            h = run(module, h, shift_NE)
        for module in self.upsampling_modules:
            is_block = isinstance(module, ResBlock)
            h = run(module, torch.cat([h, repeated(skips.pop(), len(h))], 1) if is_block else h, shift_NE)
        norm, conv = self.output_modules
        return repeated(centred_BCRQ, len(h)), conv(F.silu(norm(h))).to(wide), h


class UnetStages(Stages):
    """A pass of `UNet`: what its last ResBlock knows of P pixels, and what it says of each of their colours."""

    def __init__(self, network: UNet, x_t: Int64[Tensor, "B D"], t: Float[Tensor, " B"]) -> None:
        self.unknown = torch.ones_like(x_t, dtype=torch.bool)
        self.output_head = network.output_head()
        self._centred_BCRQ, self._out_BKRQ, h_BCRQ = network.outputs(x_t, t, None)
        self.hidden: Float[Tensor, "B P C"] = h_BCRQ.flatten(2).transpose(1, 2)

    def features(self) -> Float[Tensor, "B D 2"]:
        """See `Stages.features`."""
        return _features(self._centred_BCRQ.flatten(1), self._out_BKRQ.flatten(1))

    def features_with(self, added: Float[Tensor, "B L P K"]) -> Float[Tensor, "B L D 2"]:
        """The features in L ways, with what is added to the K = 2 numbers a colour."""
        out_BLKP = self._out_BKRQ.flatten(2)[:, None] + added.transpose(2, 3).to(self._out_BKRQ.dtype)
        return _features(self._centred_BCRQ.flatten(1)[:, None], out_BLKP.flatten(2))


def repeated(x: Float[Tensor, "B *rest"], num_rows: int) -> Float[Tensor, "N *rest"]:
    """Each row as often as makes so many of them."""
    return x if len(x) == num_rows else x.repeat_interleave(num_rows // len(x), 0)


def _features(centred: Float[Tensor, "*_N D"], out: Float[Tensor, "*N twoD"]) -> Float[Tensor, "*N D 2"]:
    """(μ, log s) of each position; `centred` is the same for all L ways where it has 1 in their place."""
    shift, log_scale = out.chunk(2, dim=-1)
    return torch.stack([torch.tanh(centred + shift), log_scale], -1)


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
    """Two convolutions, between them the time's shift, and another where there is one."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, dropout: float, *, shifted: bool) -> None:
        super().__init__()
        self.dropout = dropout
        self.groupnorm0 = group_norm(channels_in)
        self.conv0 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.dense0 = nn.Linear(embedding, channels_out)
        self.dense1 = zeroed(nn.Linear(embedding, channels_out)) if shifted else None
        self.groupnorm1 = group_norm(channels_out)
        self.conv1 = zeroed(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        self.nin = NIN(channels_in, channels_out) if channels_in != channels_out else None

    def forward(
        self, x: Float[Tensor, "M C R Q"], time: Float[Tensor, "B E"], more: Float[Tensor, "N E"] | None
    ) -> Float[Tensor, "N_ K R Q"]:
        """(x + what the convolutions make of it) / √2; where there is `more` than x has rows, as many rows as that."""
        h = self.conv0(F.silu(self.groupnorm0(x)))
        shift = repeated(self.dense0(F.silu(time)), len(h))
        if more is not None and self.dense1 is not None:
            shift = repeated(shift, len(more)) + self.dense1(F.silu(more))
        h = F.silu(self.groupnorm1(repeated(h, len(shift)) + shift[:, :, None, None]))
        h = self.conv1(F.dropout(h, self.dropout, self.training) if self.dropout else h)
        return (repeated(x if self.nin is None else self.nin(x), len(h)) + h) * math.sqrt(0.5)


def two_linear(width: int, embedding: int) -> nn.Sequential:
    """Linear, SiLU, linear; the two layers have the numbers 0 and 1."""
    return nn.Sequential(
        OrderedDict([("0", nn.Linear(width, embedding)), ("act", nn.SiLU()), ("1", nn.Linear(embedding, embedding))])
    )


def down_path(
    model: UnetConfig, channels: list[int], embedding: int, *, shifted: bool
) -> tuple[nn.ModuleList, list[int]]:
    """The modules, and the channels of each state that the up path takes in again."""
    modules: list[nn.Module] = []
    skips, here = [model.width], model.width
    for scale, wanted in enumerate(channels):
        for _ in range(model.res_blocks):
            modules.append(ResBlock(here, wanted, embedding, model.dropout, shifted=shifted))
            here = wanted
            skips.append(here)
            if scale == model.attention_scale:
                modules.append(Attention(here))
        if scale < len(channels) - 1:
            modules.append(Downsample(here))
            skips.append(here)
    return nn.ModuleList(modules), skips


def up_path(
    model: UnetConfig, channels: list[int], skips: list[int], embedding: int, *, shifted: bool
) -> nn.ModuleList:
    """The modules, each ResBlock reading one of the states of the down path beside its own."""
    modules: list[nn.Module] = []
    skips, here = list(skips), channels[-1]
    for scale in reversed(range(len(channels))):
        for _ in range(model.res_blocks + 1):
            modules.append(ResBlock(here + skips.pop(), channels[scale], embedding, model.dropout, shifted=shifted))
            here = channels[scale]
            if scale == model.attention_scale:
                modules.append(Attention(here))
        if scale > 0:
            modules.append(Upsample(here))
    return nn.ModuleList(modules)
