"""Small networks with weights drawn from a seed."""

import torch

from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig

MODEL = DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8)
PUBLISHED_LATENT = LatentConfig()
LATENTS = (
    None,
    PUBLISHED_LATENT,
    LatentConfig(law="stratified", path="adaln", inject_at=1),
    LatentConfig(law="gaussian", dim=3),
    LatentConfig(law="codebook", codebook_size=4, path="adaln"),
)


def tiny_dit(
    latent: LatentConfig | None = None, *, seed: int = 0, num_states: int = 11, model: DitConfig = MODEL
) -> DIT:
    """A DIT whose every parameter is drawn from N(0, 0.04), in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    network = DIT(model, num_states=num_states, latent=latent)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return network.eval()


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
