"""`lm_dit` and `lm_dit_di4c`: the text network, its weights loaded by their published names."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from di4c_lm.mixtures.base import Latents, NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import product, sinusoid
from di4c_lm.networks.dit import DIT, DitConfig, DitStages
from di4c_lm.processes.masked import MaskedProcess
from tests.parity.golden import Computed, Golden, Tolerance

INPUTS = ("indices", "sigma", "z")
_VALUES = Tolerance(atol=1e-5, rtol=1e-5)
_LOG_P = Tolerance(atol=1e-5, rtol=1e-7)  # the second part is 0.1 for the entries near -1e6


def load(golden: Golden) -> Any:
    """Our network, or a mixture on it, with the file's weights, strictly; their shapes say all but the number of heads."""
    weights = golden.weights()
    num_states, hidden_size = weights["vocab_embed.embedding"].shape
    num_blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    model = DitConfig(
        hidden_size=hidden_size,
        num_blocks=num_blocks,
        num_heads=golden.meta["heads"],
        cond_dim=len(weights["sigma_map.mlp.0.bias"]),
    )
    mixture = TokenSettings() if "z" in golden.arrays else NoMixture()
    network = mixture.fresh(DIT, model, {"num_states": num_states})
    network.load(weights)
    return network.eval()


def compute(golden: Golden) -> Iterator[Computed]:
    """Every array that is not an input."""
    network = load(golden)
    x_t, sigma_B = golden.tensor("indices"), golden.tensor("sigma")
    lam = Latents(golden.tensor("z")[:, None, None]) if network.has_latents else None
    with torch.no_grad():
        hidden: list[Tensor] = []
        hooks = [block.register_forward_hook(partial(_keep, hidden)) for block in network.blocks]
        logits_BDS = _logits(network, x_t, sigma_B, lam)
        for hook in hooks:
            hook.remove()
        for index, stream in enumerate(hidden):
            yield Computed(f"hidden_after_block{index}", stream, _VALUES)
        yield Computed("logits", logits_BDS, _VALUES)
        yield Computed("logits_sigma0", _logits(network, x_t, torch.zeros_like(sigma_B), lam), _VALUES)
        log_p_BDS = MaskedProcess(mask_id=golden.meta["mask_index"]).constrain(logits_BDS, x_t)
        yield Computed("log_p_subs", log_p_BDS, _LOG_P)
        yield Computed("sigma_map_out", network.sigma_map(sigma_B), _VALUES)
        if lam is not None:
            yield Computed("z_embed_in", sinusoid(1000 * lam.value.flatten()), _VALUES)
            yield Computed("z_embed", network.embed(lam), _VALUES)


def _keep(hidden: list[Tensor], _block: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
    hidden.append(output)


def _logits(network: Any, x_t: Tensor, sigma_B: Tensor, lam: Latents | None) -> Tensor:
    """The raw logits, MASK's among them, at every position."""
    stages = DitStages(network if lam is None else network.network, x_t, sigma_B)
    prediction = product(stages) if lam is None else network.drive(stages, lam)
    output_head = dataclasses.replace(network.output_head(), impossible=None)
    features_BDH = prediction.features.squeeze(1)
    positions_N = torch.arange(x_t.shape[1]).repeat(len(x_t))
    return output_head.logits(features_BDH.flatten(0, 1), positions_N).view(*x_t.shape, -1)
