"""Small networks and batches for objectives, on text and on levels of pixels."""

from typing import Any

import torch
from torch import Tensor, nn

from di4c_lm.data.batches import Batch
from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.base import MixtureSettings, NoMixture
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.networks.unet import UNet, UnetConfig
from di4c_lm.objectives.objective import Objective
from di4c_lm.processes.gaussian import GaussianChain
from di4c_lm.processes.masked import MaskedProcess

STATES, LENGTH = 7, 6
MASK = STATES - 1
MASKED = MaskedProcess(MASK)
LEVELS, PIXELS = 5, 4
GAUSSIAN = GaussianChain(num_states=LEVELS, rate_sigma=1.0, q_sigma=8.0, time_base=0.3, time_exponential=20.0)
TOKEN = TokenSettings()
CODES = AdaLNSettings(distribution="codebook", codebook_size=4, init_scale=1.0)
CLASSES = ClassChainSettings(codebook_size=3, relations=2, init_scale=1.0, freeze_backbone=False)
TEXT = DitConfig(hidden_size=16, num_blocks=2, num_heads=2, cond_dim=8)
PIXEL = UnetConfig(width=4, multipliers=(1,), res_blocks=1, attention_scale=-1, dropout=0.0)


def filled(make: Any, seed: int) -> Any:
    """A float64 network whose every parameter matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.4)
    return network.double()


def text_network(mixture: MixtureSettings | None = None, seed: int = 1) -> Any:
    return filled(lambda: (mixture or NoMixture()).fresh(DIT, TEXT, {"num_states": STATES}), seed)


def pixel_network(mixture: MixtureSettings | None = None, seed: int = 1) -> Any:
    sizes = {"shape": (2, 2, 1), "num_states": LEVELS}
    return filled(lambda: (mixture or NoMixture()).fresh(UNet, PIXEL, sizes), seed)


def text_batch(*sample_ids: int) -> Batch:
    ids = torch.tensor(sample_ids)
    x = torch.stack([(torch.arange(LENGTH) * (i + 3)) % MASK for i in sample_ids])
    return Batch(x=x, sample_id=ids, epoch=torch.zeros_like(ids))


def pixel_batch(*sample_ids: int) -> Batch:
    ids = torch.tensor(sample_ids)
    x = torch.stack([(torch.arange(PIXELS) * (i + 2)) % LEVELS for i in sample_ids])
    return Batch(x, ids, torch.zeros_like(ids), ids % 3)


def gradients(of: Objective, batch: Any) -> dict[str, Tensor]:
    """Of the parameters that the loss reaches."""
    of.zero_grad()
    of(batch)[0].backward()
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


def check_batch_is_mean_of_examples(of: Objective, batch: Any, alone: list[Any]) -> None:
    """So neither the number of ranks nor the micro-batch can change what is learned."""
    whole, parts = gradients(of, batch), [gradients(of, one) for one in alone]
    loss, metrics = of(batch)
    found = [of(one) for one in alone]
    torch.testing.assert_close(loss, torch.stack([one[0] for one in found]).mean())
    for name, value in metrics.items():
        torch.testing.assert_close(value, torch.stack([one[1][name] for one in found]).mean())
    assert any(bool(gradient.abs().max() > 0) for gradient in whole.values())
    for name, gradient in whole.items():
        expected = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
