"""Small networks and mixtures with weights drawn from a seed."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.dit import DIT, DitConfig

MODEL = DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8)
PUBLISHED = TokenSettings()
MIXTURES: tuple[MixtureSettings, ...] = (
    NoMixture(),
    PUBLISHED,
    AdaLNSettings(distribution="stratified", inject_at=1),
    TokenSettings(distribution="gaussian", dim=3),
    AdaLNSettings(distribution="codebook", codebook_size=4),
)


def tiny(
    mixture: MixtureSettings = MIXTURES[0], *, seed: int = 0, num_states: int = 11, model: DitConfig = MODEL
) -> Any:
    """A DIT, or a mixture on one, whose every parameter is drawn from N(0, 0.04), in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = mixture.fresh(DIT, model, {"num_states": num_states})
    network = getattr(denoiser, "network", denoiser)
    with torch.no_grad():
        for module in dict.fromkeys((network, denoiser)):
            for name, parameter in module.named_parameters():
                if module is network or not name.startswith("network."):
                    parameter.normal_(std=0.2, generator=generator)
    return denoiser.eval()


def assert_same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same names, dtypes, shapes and bits."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
