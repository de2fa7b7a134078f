"""Taming's VQGAN (Esser et al. 2021): images to codes and back. Parameters bear the names and shapes of the published checkpoints.

Only what turns images into codes and codes into images is here; the discriminator and the perceptual loss of its training are not.
"""

import dataclasses
from collections import OrderedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.core.settings import Ints, at_least, check, positive, section, setting
from di4c_lm.networks.base import Downsample, Upsample

_EPS = 1e-6
_ROWS = 2**14  # vectors compared with the codebook at once


@section
class VqganConfig:
    """Taming's VQGAN (Esser et al. 2021), by the names of its YAML; the defaults are the published f16 with 1,024 codes."""

    n_embed: int = setting(1024, "K, codes")
    embed_dim: int = setting(256, "width of a code's vector")
    z_channels: int = setting(256, "channels of the encoder's output")
    resolution: int = setting(
        256, "rows and columns of an image; those of its codes are so many / 2^(len(ch_mult) - 1)"
    )
    in_channels: int = setting(3, "channels of the images read")
    out_ch: int = setting(3, "channels of the images written")
    ch: int = setting(128, "channels that the scales multiply")
    ch_mult: Ints = setting((1, 1, 2, 2, 4), "channels of each scale over `ch`")
    num_res_blocks: int = setting(2, "residual blocks a scale")
    attn_resolutions: Ints = setting((16,), "rows of the scales that have attention")
    dropout: float = setting(0.0, "share of the activations dropped in training")
    norm_groups: int = setting(32, "groups of the norms")
    beta: float = setting(0.25, "weight of the commitment")

    def __post_init__(self) -> None:
        names = ("n_embed", "embed_dim", "z_channels", "resolution", "in_channels", "out_ch", "ch", "num_res_blocks")
        positive(self, *names, "norm_groups")
        check(len(self.ch_mult) > 0 and min(self.ch_mult) > 0, "ch_mult", self.ch_mult, "factors above 0")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "in [0, 1)")
        at_least(self, 0, "beta")
        whole = self.resolution % self.factor == 0
        check(whole, "resolution", self.resolution, f"a multiple of 2^(len(ch_mult) - 1) = {self.factor}")
        check(self.ch % self.norm_groups == 0, "ch", self.ch, f"a multiple of norm_groups = {self.norm_groups}")

    @property
    def factor(self) -> int:
        """Pixels of an image a code, along one side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def side(self) -> int:
        """Codes along one side."""
        return self.resolution // self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised:
    """Vectors, each replaced by the nearest code."""

    vectors: Float[Tensor, "B E h w"]  # the codes' vectors; gradients pass to what was replaced
    loss: Float[Tensor, ""]  # mean |e - sg z|^2 + beta mean |sg e - z|^2
    codes: Int64[Tensor, "B D"]  # row by row, D = h w


def _norm(config: VqganConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, channels, eps=_EPS)


class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm x))))), x by a 1x1 convolution where the channels change."""

    def __init__(self, config: VqganConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(config, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(config, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.changes = in_channels != out_channels

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C2 h w"]:
        """The block's output."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if self.changes else x) + h


class AttnBlock(nn.Module):
    """x + attention of one head over all places of norm x."""

    def __init__(self, config: VqganConfig, channels: int) -> None:
        super().__init__()
        self.norm = _norm(config, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """The block's output."""
        h = self.norm(x)
        q, k, v = (one(h).flatten(2).transpose(1, 2) for one in (self.q, self.k, self.v))
        mixed_BDC = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(mixed_BDC.transpose(1, 2).reshape(x.shape))


def middle(config: VqganConfig, channels: int) -> nn.Sequential:
    """Between encoder's and decoder's levels."""
    return nn.Sequential(
        OrderedDict(
            block_1=ResnetBlock(config, channels, channels),
            attn_1=AttnBlock(config, channels),
            block_2=ResnetBlock(config, channels, channels),
        )
    )


class Level(nn.Module):
    """The blocks of one resolution, with attention after each where the settings say so, and the way to the next resolution."""

    def __init__(
        self,
        config: VqganConfig,
        channels: list[int],
        resolution: int,
        *,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        pairs = list(zip(channels, channels[1:], strict=False))
        self.block = nn.ModuleList(ResnetBlock(config, a, b) for a, b in pairs)
        attends = resolution in config.attn_resolutions
        self.attn = nn.ModuleList(AttnBlock(config, b) for _, b in pairs if attends)
        if downsample:
            self.downsample = Downsample(channels[-1])
        if upsample:
            self.upsample = Upsample(channels[-1])
        self.turn = "downsample" if downsample else "upsample" if upsample else None

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C2 h2 w2"]:
        """The output."""
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x if self.turn is None else self.get_submodule(self.turn)(x)


class Encoder(nn.Module):
    """Images to what is quantised, before the 1x1 convolution."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in (1, *config.ch_mult)]
        levels = range(len(config.ch_mult))
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                config,
                [widths[level]] + [widths[level + 1]] * config.num_res_blocks,
                config.resolution // 2**level,
                downsample=level < levels[-1],
            )
            for level in levels
        )
        self.mid = middle(config, widths[-1])
        self.norm_out = _norm(config, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, image: Float[Tensor, "B C R R"]) -> Float[Tensor, "B Z h w"]:
        """The output."""
        x = self.conv_in(image)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """What the codes say, after the 1x1 convolution, to images."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        widths = [config.ch * factor for factor in config.ch_mult]
        above = [*widths[1:], widths[-1]]  # of the level that comes before
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = middle(config, widths[-1])
        self.up = nn.ModuleList(
            Level(
                config,
                [above[level]] + [width] * (config.num_res_blocks + 1),
                config.resolution // 2**level,
                upsample=level > 0,
            )
            for level, width in enumerate(widths)
        )
        self.norm_out = _norm(config, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_ch, 3, padding=1)

    def forward(self, z: Float[Tensor, "B Z h w"]) -> Float[Tensor, "B C R R"]:
        """The output."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """K vectors, and the nearest of them."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.beta = config.beta
        self.embedding = nn.Embedding(config.n_embed, config.embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.n_embed, 1 / config.n_embed)

    def forward(self, z: Float[Tensor, "B E h w"]) -> Quantised:
        """`z` with each vector replaced by the code at the least squared distance."""
        flat_NE = z.movedim(1, 3).flatten(0, 2)
        with torch.no_grad():
            codes_N = torch.cat([self._distances(rows_ME).argmin(1) for rows_ME in flat_NE.split(_ROWS)])
        vectors = self.lookup(codes_N.view(len(z), -1), z.shape[2])
        loss = F.mse_loss(vectors, z.detach()) + self.beta * F.mse_loss(z, vectors.detach())
        return Quantised(
            vectors=z + (vectors - z).detach(),
            loss=loss,
            codes=codes_N.view(len(z), -1),
        )

    def lookup(self, codes: Int64[Tensor, "B D"], height: int) -> Float[Tensor, "B E h w"]:
        """The vectors of codes, laid out row by row."""
        return self.embedding(codes).unflatten(1, (height, -1)).movedim(3, 1).contiguous()

    def _distances(self, rows_ME: Float[Tensor, "M E"]) -> Float[Tensor, "M K"]:
        """Squared distances to the codes."""
        weight_KE = self.embedding.weight
        return rows_ME.square().sum(1, keepdim=True) + weight_KE.square().sum(1) - 2 * rows_ME @ weight_KE.T


class VqGan(nn.Module):
    """Images in [-1, 1] to codes and back."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.config = config
        self.num_codes, self.length = config.n_embed, config.side**2  # K, and D codes an image
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Codebook(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def forward(self, image: Float[Tensor, "B C R R"]) -> tuple[Float[Tensor, "B C R R"], Quantised]:
        """The image after the way there and back, and its codes."""
        quantised = self.quantise(image)
        return self.decode_vectors(quantised.vectors), quantised

    def quantise(self, image: Float[Tensor, "B C R R"]) -> Quantised:
        """The codes of an image. Raises `ValueError` for another size or number of channels."""
        expected = (self.config.in_channels, self.config.resolution, self.config.resolution)
        if tuple(image.shape[1:]) != expected:
            raise ValueError(f"image: expected shape (B, {', '.join(map(str, expected))}), got {tuple(image.shape)}")
        return self.quantize(self.quant_conv(self.encoder(image)))

    def decode_vectors(self, vectors: Float[Tensor, "B E h w"]) -> Float[Tensor, "B C R R"]:
        """The image of codes' vectors, not clamped."""
        return self.decoder(self.post_quant_conv(vectors))

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "B C R R"]) -> Int64[Tensor, "B D"]:
        """The codes alone, row by row."""
        return self.quantise(image).codes

    @torch.no_grad()
    def decode(self, codes: Int64[Tensor, "B D"]) -> Float[Tensor, "B C R R"]:
        """The image of codes, in [-1, 1]. Raises `ValueError` for codes that are none, such as MASK, and another number of them."""
        if codes.shape[1] != self.length:
            raise ValueError(f"codes: expected {self.length} an image, got {codes.shape[1]}")
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_codes:
            found = f"{int(codes.min())} to {int(codes.max())}"
            raise ValueError(f"codes: expected 0 to {self.num_codes - 1}, got {found}")
        return self.decode_vectors(self.quantize.lookup(codes, self.config.side)).clamp(-1, 1)
