"""Small networks with weights everywhere, and copies of them with another λ path."""

import torch
from torch import Tensor

from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig

STATES, BLOCKS, LENGTH = 11, 3, 6


def net(latent: LatentConfig | None = None, *, seed: int = 0, **model: object) -> DIT:
    """A network in float64; those of one seed share every weight that is not of the λ path."""
    config = DitConfig(**{"hidden_size": 16, "num_blocks": BLOCKS, "num_heads": 2, "cond_dim": 8, **model})  # pyright: ignore
    network = DIT(config, num_states=STATES, latent=latent).double()
    for index, (name, parameter) in enumerate(network.named_parameters()):
        own = is_latent(name)
        rng = torch.Generator().manual_seed(1000 * seed + index + 500 * own)
        parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.3
    return network.eval()


def tokens(num_batch: int, seed: int = 0) -> Tensor:
    """Sequences with some positions masked."""
    return torch.randint(STATES, (num_batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def scalars(num_batch: int, num_lambdas: int, seed: int = 1) -> Tensor:
    """Uniform λ, (B, L, 1)."""
    return torch.rand(num_batch, num_lambdas, 1, generator=torch.Generator().manual_seed(seed))


def half(num_batch: int) -> Tensor:
    """t = 1/2 for all."""
    return torch.full((num_batch,), 0.5)
