"""Small mixtures with weights everywhere, over the networks of `tests.networks.helpers`: those share every weight that is not λ's."""

from typing import Any, TypeAlias

import torch
from torch import Tensor

from di4c_lm.mixtures.base import Latents, Mixture, MixtureSettings
from di4c_lm.networks.dit import DIT
from di4c_lm.networks.maskgit import MaskGit
from di4c_lm.networks.unet import UNet
from di4c_lm.processes.rng import KeyedRng
from tests.networks import helpers
from tests.networks.helpers import CLASSES, CODE_LENGTH, CODES, LEVELS, SHAPE, STATES, fill

CPU = torch.device("cpu")
Gradients: TypeAlias = "dict[str, Tensor | None]"


def on_dit(settings: MixtureSettings, **model: Any) -> Any:
    return _filled(settings.fresh(DIT, helpers.dit_config(**model), {"num_states": STATES}))


def on_maskgit(settings: MixtureSettings, **model: Any) -> Any:
    sizes = {"num_codes": CODES, "num_classes": CLASSES, "length": CODE_LENGTH}
    return _filled(settings.fresh(MaskGit, helpers.maskgit_config(**model), sizes))


def on_unet(settings: MixtureSettings, shape: tuple[int, int, int] = SHAPE, levels: int = LEVELS, **model: Any) -> Any:
    return _filled(settings.fresh(UNet, helpers.unet_config(**model), {"shape": shape, "num_states": levels}))


def _filled(mixture: Mixture) -> Mixture:
    fill(mixture.network)
    for number, (name, parameter) in enumerate(mixture.double().named_parameters()):
        if mixture.learns_apart(name):
            rng = torch.Generator().manual_seed(500 + number)
            parameter.data = torch.randn(parameter.shape, generator=rng, dtype=torch.float64) * 0.3
    return mixture.eval()


def sampled(mixture: Any, num_batch: int, num_lambdas: int, seed: int = 2) -> Latents:
    """λ, sampled by noise that is keyed by the sequence."""
    return mixture.sample_latents(num_batch, num_lambdas, KeyedRng(seed, torch.arange(num_batch)), CPU)


def enumerated(mixture: Any, num_batch: int) -> Latents:
    """λ as a loss reads it."""
    return mixture.training_latents(num_batch, 1, KeyedRng(0, torch.arange(num_batch)), CPU)


def scalars(num_batch: int, num_lambdas: int, seed: int = 1) -> Latents:
    """Uniform λ, (B, L, 1)."""
    return Latents(torch.rand(num_batch, num_lambdas, 1, generator=torch.Generator().manual_seed(seed)))


def gradients(mixture: Any) -> Gradients:
    """Of every parameter that it has, by name."""
    return {name: parameter.grad for name, parameter in mixture.named_parameters()}


def check_same(first: tuple[Any, Gradients], *others: tuple[Any, Gradients]) -> None:
    """That all have the value and the gradients of the first."""
    for value, grads in others:
        torch.testing.assert_close(value, first[0])
        for name, expected in first[1].items():
            torch.testing.assert_close(grads[name], expected, msg=lambda text, name=name: f"{name}: {text}")
