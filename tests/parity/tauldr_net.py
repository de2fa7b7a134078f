"""`tauldr_net`, `tauldr_net_lam`: the U-Net and its logits, with the raw and the averaged weights of the checkpoint beside the case."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from di4c_lm.checkpoints import tauldr
from di4c_lm.checkpoints.weights import Hints
from di4c_lm.mixtures.base import Latents
from di4c_lm.networks.logistic_head import LogisticHead
from di4c_lm.processes.denoiser import Prediction
from tests.parity.golden import Computed, Golden, Tolerance

INPUTS = ("x", "times", "lams")
_NET = Tolerance(atol=1e-5)
_PROBABILITY = Tolerance(atol=2e-6)


def compute(golden: Golden) -> Iterator[Computed]:
    """The network's output, and the normalised distributions that the file's output stands for: its logits are not normalised.

    The raw weights are those of the `.safetensors`; in the `.pt` the average stands in both places.
    """
    (rows, columns), num_states = golden.arrays["net_out_ema"].shape[2:], golden.arrays["logits_ema"].shape[-1]
    size = {"shape": (rows, columns, 3), "num_states": num_states}
    published = LogisticHead(num_states, both_tails=golden.meta["fix_logistic"])
    other = LogisticHead(num_states, both_tails=not golden.meta["fix_logistic"])
    raw = {name: tensor for name, tensor in golden.weights().items() if name.startswith("net.")}
    path = golden.path.with_suffix(".ckpt.pt")
    found = {
        "raw": tauldr.of_state(raw, golden.path, Hints(weights="raw", **size)),
        "ema": tauldr.read(path, Hints(**size)),
    }
    for which, weights in found.items():
        yield Computed(f"net_out_{which}", _net_out(golden, weights.build(golden.path)), _NET)
        yield Computed(f"logits_{which}", _probabilities(golden, which, published), _PROBABILITY, softmax)
    yield Computed("logits_ema_np64", _probabilities(golden, "ema", published), _PROBABILITY, softmax)
    yield Computed("logits_ema_other_fix_logistic", _probabilities(golden, "ema", other), _PROBABILITY, softmax)


def _net_out(golden: Golden, network: Any) -> Tensor:
    """(B, 2C, rows, columns): μ, then log s."""
    lam = Latents(golden.tensor("lams")[:, None]) if "lams" in golden.arrays else None
    with torch.no_grad():
        features_NDH = network(golden.tensor("x"), golden.tensor("times"), lam).features[:, 0]
    rows, columns, colours = network.shape
    return features_NDH.permute(0, 2, 1).reshape(-1, 2 * colours, rows, columns)


def _probabilities(golden: Golden, which: str, output_head: LogisticHead) -> Tensor:
    """The probabilities that the file's own μ and log s stand for."""
    means, log_scales = golden.tensor(f"net_out_{which}").double().chunk(2, 1)
    features_NDH = torch.stack([means.flatten(1), log_scales.flatten(1)], 2)
    return Prediction(features_NDH[:, None], output_head).log_probs()[:, 0].exp()


def softmax(logits: Tensor) -> Tensor:
    """Logits of the published code are compared as probabilities: their tails are rounding."""
    return logits.double().softmax(-1)
