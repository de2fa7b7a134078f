"""Whether a sampler draws rare tokens at their true rate: the sampler itself, on a network whose law is known."""

import math
from typing import Any

import torch

from di4c_lm.domains.text.model import TextModel
from di4c_lm.networks.dit import DIT, DitConfig

_BATCH, _COMMON = 64, 2


def tail_probe(
    tokenizer: Any, *, steps: int, seed: int, settings: dict[str, Any], rare: int = 4096, expected: float = 60.0
) -> dict[str, float]:
    """How often rare tokens come, over how often they should, `tail_rate`, and the binomial p-value `tail_p` of so few or fewer.

    The network says the same everywhere: `rare` tokens of probability 1.5e-8 `steps` each, and two common ones; float32 exponential noise
    draws the rare ones about a third as often as it should. `settings` go to `TextModel.sample`, so that what is probed is the path that
    the samples took. Enough positions are drawn for `expected` rare tokens.
    """
    p = min(1.5e-8 * steps, 0.5 / rare)
    length = max(1, round(expected / (p * rare * _BATCH)))
    num_states = rare + _COMMON + 1
    net = DIT(DitConfig(hidden_size=2, num_blocks=1, num_heads=1, cond_dim=2), num_states=num_states)
    bias_S = torch.full((num_states,), math.log(p))
    bias_S[rare : rare + _COMMON] = math.log((1 - rare * p) / _COMMON)
    net.output_layer.linear.bias.data = bias_S
    model = TextModel(denoiser=net.eval(), tokenizer=tokenizer, length=length)
    tokens, _ = model.sample(_BATCH, steps, seed=seed, batch_size=_BATCH, **settings)
    seen, trials = int((tokens < rare).sum()), tokens.numel()
    return {"tail_rate": seen / (trials * rare * p), "tail_p": _at_most(seen, trials, rare * p)}


def _at_most(seen: int, trials: int, p: float) -> float:
    """P(X <= seen) for X ~ Binomial(trials, p)."""
    whole = math.lgamma(trials + 1)
    terms = [
        whole - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * math.log(p) + (trials - k) * math.log1p(-p)
        for k in range(seen + 1)
    ]
    top = max(terms)
    return min(1.0, math.exp(top) * sum(math.exp(term - top) for term in terms))
