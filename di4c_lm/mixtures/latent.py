"""λ: the laws it is drawn from, and the embeddings that carry it into a network."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.processes.rng import KeyedRng

LATENT_PREFIXES = ("latent_projection", "latent_codebook", "latent_modulation", "latent_head")
SINUSOID_DIM = 128
PROJECTION_DIM = 512
Uniform = Callable[[tuple[int, ...]], Tensor]  # shape, whose first axis is B, to float64 uniforms in [0, 1)


def is_latent(name: str) -> bool:
    """Whether the parameter `name` of a transformer belongs to the λ path."""
    return name.startswith(LATENT_PREFIXES)


def sinusoid(angle_N: Float[Tensor, " N"], dim: int = SINUSOID_DIM) -> Float[Tensor, "N dim"]:
    """[sin(a g_k), cos(a g_k)] with g_k = 10000^(-k / (dim/2 - 1)), the embedding of λ in the published students (a = 1000 λ)."""
    half = dim // 2
    frequency = torch.exp(torch.arange(half, device=angle_N.device) * (-math.log(10_000) / (half - 1)))
    phase = angle_N.float()[:, None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def sample_latents(config: LatentConfig, num_batch: int, num_lambdas: int, uniform: Uniform) -> Tensor:
    """L draws of λ for each of B sequences by the law of `config`: (B, L, dim) floats, or (B, L, 1) code numbers.

    `uniform` is the only source of chance. A codebook as large as L is enumerated, which makes the mixture exact; a larger one is sampled.
    L = 0 asks for all the codes of a codebook. Where λ is a string of codes, a draw is one float64 uniform, from which the
    network makes the string, and only L = 0 enumerates. Raises `ValueError` for L = 0 under another law, or L above the codebook.
    """
    if num_lambdas == 0 and config.law == "codebook":
        return _every_code(config.codebook_size, uniform((num_batch, 1, 1)))
    if config.is_string and num_lambdas > 0:
        return uniform((num_batch, num_lambdas, 1))
    if num_lambdas < 1:
        raise ValueError(f"num_lambdas must be at least 1, got {num_lambdas}")
    if config.law == "uniform":
        return uniform((num_batch, num_lambdas, 1)).float()
    if config.law == "stratified":  # one draw in each of L equal strata, the same marginal law
        u_BL1 = uniform((num_batch, num_lambdas, 1))
        stratum_L1 = torch.arange(num_lambdas, device=u_BL1.device)[:, None]
        return ((stratum_L1 + u_BL1) / num_lambdas).float()
    if config.law == "gaussian":
        return torch.special.ndtri(uniform((num_batch, num_lambdas, config.dim)) + 2.0**-54).float()
    return _codes(config.codebook_size, num_batch, num_lambdas, uniform)


def is_string(lam: Tensor) -> bool:
    """Whether λ is the uniforms by which strings of codes are drawn: they alone are float64."""
    return lam.dtype == torch.float64


def string_uniforms(lam: Tensor, num_windows: int) -> Tensor:
    """The uniforms (B, N, W) by which strings of codes are drawn, made of the one (B, N, 1) that each is drawn by."""
    keys_N = lam.double().view(torch.int64).flatten()
    return KeyedRng(0, keys_N).uniform((len(keys_N), num_windows), lam.device).view(*lam.shape[:2], num_windows)


def _codes(size: int, num_batch: int, num_lambdas: int, uniform: Uniform) -> Int64[Tensor, "B L 1"]:
    if num_lambdas > size:
        raise ValueError(f"num_lambdas={num_lambdas} exceeds lambda.codebook_size={size}")
    u_BL1 = uniform((num_batch, num_lambdas, 1))
    return _every_code(size, u_BL1) if num_lambdas == size else (u_BL1 * size).long()


def _every_code(size: int, like_B: Float[Tensor, "B *rest"]) -> Int64[Tensor, "B L 1"]:
    return torch.arange(size, device=like_B.device).view(1, -1, 1).expand(len(like_B), -1, -1)


def inject_block(config: LatentConfig | None, num_blocks: int) -> int:
    """The block before which λ enters: for path=head the last, whose attention comes before it still; for path=classes none."""
    if config is None:
        return 0
    if config.path == "classes":
        return num_blocks
    return num_blocks - 1 if config.path == "head" else config.inject_at % num_blocks


def latent_input_dim(config: LatentConfig) -> int:
    """Width of what `latent_projection` reads."""
    return config.dim if config.law == "gaussian" else SINUSOID_DIM


def latent_projection(config: LatentConfig, width: int) -> nn.Sequential:
    """The two-layer MLP of the published students: 128 -> 512 -> H with exact GELU."""
    return nn.Sequential(
        nn.Linear(latent_input_dim(config), PROJECTION_DIM), nn.GELU(), nn.Linear(PROJECTION_DIM, width)
    )


def latent_features(config: LatentConfig, lam_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N F"]:
    """What the projection reads: the sinusoid of 1000 λ for a scalar, the vector itself for Gaussian λ."""
    if config.law == "gaussian":
        return lam_NK
    return sinusoid(1000.0 * lam_NK[:, 0])


def latent_codebook(config: LatentConfig, width: int) -> nn.Embedding:
    """The learned vectors of law=codebook, which stand in place of the projection."""
    codebook = nn.Embedding(config.codebook_size, width)
    nn.init.normal_(codebook.weight, std=1.0 if config.path == "adaln" else config.init_scale)
    return codebook


def latent_modulation(config: LatentConfig, width: int, blocks: range) -> nn.ModuleDict:
    """λ's embedding to shift and scale of the two norms of each of `blocks`, for path=adaln."""
    modulation = nn.ModuleDict({str(index): nn.Linear(width, 4 * width, bias=False) for index in blocks})
    for weight in modulation.parameters():
        nn.init.normal_(weight, std=config.init_scale / math.sqrt(width))
    return modulation


def check_latents(x_t: Int64[Tensor, "B D"], lam: Tensor | None, latent: LatentConfig | None) -> None:
    """Raise `ValueError` for `lam` where the network has no λ, or of a shape other than (B, L >= 1, K)."""
    if lam is not None and latent is None:
        raise ValueError(f"lam: expected none, since this network has no λ, got shape {tuple(lam.shape)}")
    if lam is not None and (lam.dim() != 3 or len(lam) != len(x_t) or lam.shape[1] < 1):
        raise ValueError(f"lam: expected shape (B={len(x_t)}, L >= 1, K), got {tuple(lam.shape)}")
