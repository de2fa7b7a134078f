"""`maskgit_net` and `maskgit_net_student`: the transformer on codes, its weights loaded by their published names."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from di4c_lm.mixtures.base import Latents, NoMixture
from di4c_lm.mixtures.token import TokenSettings
from di4c_lm.networks.base import sinusoid
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from di4c_lm.processes.denoiser import NO_CLASS
from tests.parity.golden import Computed, Golden, Tolerance

INPUTS = ("img_token", "y", "drop_label", "z")
_VALUES = Tolerance(atol=5e-5, rtol=1e-5)
_MIXED = Tolerance(atol=5e-4, rtol=1e-5)  # float32 sines of angles up to 1000
_SINUSOID = Tolerance(atol=1e-5, rtol=1e-5)


def load(golden: Golden) -> Any:
    """Our network, or a mixture on it, with the file's weights, strictly; MASK keeps its share of the predictions, as published.

    The shapes say all but the number of heads: the embedding holds K codes, MASK, the classes and that of no class.
    """
    weights = golden.weights()
    num_embeddings, hidden_size = weights["tok_emb.weight"].shape
    num_codes = golden.arrays["logits_z_none"].shape[2] - 1
    mixture = TokenSettings() if "z" in golden.arrays else NoMixture()
    network = mixture.fresh(
        MaskGit,
        MaskGitConfig(
            hidden_size=hidden_size,
            num_blocks=1 + max(int(name.split(".")[2]) for name in weights if name.startswith("transformer.layers.")),
            num_heads=golden.meta["heads"],
            mlp_size=len(weights["transformer.layers.0.1.fn.net.0.bias"]),
            mask_state=True,
        ),
        {
            "num_codes": num_codes,
            "num_classes": num_embeddings - num_codes - 2,
            "length": weights["pos_emb"].shape[1] - 1,
        },
    )
    network.load(weights)
    return network.eval()


@torch.no_grad()
def compute(golden: Golden) -> Iterator[Computed]:
    """Every array that is not an input."""
    network = load(golden)
    x_t = golden.tensor("img_token").flatten(1)
    told = torch.where(golden.tensor("drop_label"), NO_CLASS, golden.tensor("y"))
    untold = torch.full_like(told, NO_CLASS)
    yield Computed("logits_z_none", _logits(network, x_t, told), _VALUES)
    yield Computed("logits_droplabel_none", _logits(network, x_t, None), _VALUES)
    yield Computed("logits_all_dropped", _logits(network, x_t, untold), _VALUES)
    if network.has_latents:
        lam = Latents(golden.tensor("z")[:, None])
        yield Computed("logits_z", _logits(network, x_t, told, lam), _MIXED)
        yield Computed("z_embed_in", sinusoid(1000 * lam.value.flatten()), _SINUSOID)
        yield Computed("z_embed", network.embed(lam), _SINUSOID)


def _logits(network: Any, x_t: Tensor, cond: Tensor | None, lam: Latents | None = None) -> Tensor:
    prediction = network(x_t, torch.zeros(len(x_t)), lam, cond)
    positions_N = torch.arange(x_t.shape[1]).repeat(len(x_t))
    return network.output_head().logits(prediction.features.flatten(0, 2), positions_N).view(*x_t.shape, -1)
