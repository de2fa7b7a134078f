"""The parts of tauLDR's U-Net, under their published names. Residual sums are divided by √2."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from di4c_lm.domains.pixels.settings import UnetConfig


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
