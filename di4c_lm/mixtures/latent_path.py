"""The parts through which λ enters a transformer, as its settings have it."""

from torch import nn

from di4c_lm.mixtures.class_head import ClassHead
from di4c_lm.mixtures.code_head import MixtureHead
from di4c_lm.mixtures.latent import inject_block, latent_codebook, latent_modulation, latent_projection
from di4c_lm.mixtures.settings import LatentConfig


def latent_parts(latent: LatentConfig, *, width: int, num_blocks: int, num_states: int) -> dict[str, nn.Module]:
    """The modules of the λ path by the names that they bear in a network of `num_blocks` blocks on `num_states` states.

    Raises `ValueError` for a block that is none, and for a codebook without vectors.
    """
    if not -num_blocks <= latent.inject_at < num_blocks:
        raise ValueError(f"lambda.inject_at={latent.inject_at} must be below model.num_blocks={num_blocks}")
    if latent.law == "codebook" and latent.codebook_size < 1:
        raise ValueError(f"lambda.codebook_size must be at least 1, got {latent.codebook_size}")
    if latent.path == "head":
        return {"latent_head": MixtureHead(latent, width)}
    if latent.path == "classes":
        return {"latent_head": ClassHead(latent, width, num_states)}
    parts: dict[str, nn.Module] = {}
    if latent.law == "codebook":
        parts["latent_codebook"] = latent_codebook(latent, width)
    else:
        parts["latent_projection"] = latent_projection(latent, width)
    if latent.path == "adaln":
        conditioned = range(inject_block(latent, num_blocks), num_blocks)
        parts["latent_modulation"] = latent_modulation(latent, width, conditioned)
    return parts
