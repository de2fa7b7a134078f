"""Canaries: samplers without a model, made of real text. A suite that ranks one of them with the models measures the wrong thing.

And a probe of the sampler itself, on a network whose distribution is known.
"""

import dataclasses
import math
from typing import Any, final

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from di4c_lm.measure.text.diversity import sample_entropy
from di4c_lm.processes.denoiser import LinearHead, OutputHead, Prediction

_BATCH, _COMMON = 64, 2


def periodic(reference_MD: Int[Tensor, "M D"], num_samples: int, *, seed: int) -> Int[Tensor, "N D"]:
    """The k most frequent tokens over and over, each sample from another phase; k = exp(mean sample entropy), so that entropy looks right.

    Evaluators that copy from their context find it fluent (arXiv 2606.08417: perplexity 21.6 on OpenWebText, the data's being 17.2).
    """
    length = reference_MD.shape[1]
    tokens_V, counts_V = reference_MD.unique(return_counts=True)
    period = max(1, min(len(tokens_V), round(math.exp(float(sample_entropy(reference_MD).mean())))))
    cycle_K = tokens_V[counts_V.argsort(descending=True, stable=True)[:period]]
    phase_N1 = torch.randint(period, (num_samples, 1), generator=torch.Generator().manual_seed(seed))
    return cycle_K[(phase_N1 + torch.arange(length)) % period]


def tiled(real_KD: Int[Tensor, "K D"], num_samples: int) -> Int[Tensor, "N D"]:
    """One real text as every sample: fluent, of normal entropy, and a collapse that no measure of single samples sees."""
    return real_KD[:1].repeat(num_samples, 1)


def shuffled(real_KD: Int[Tensor, "K D"], num_samples: int, *, seed: int) -> Int[Tensor, "N D"]:
    """Real texts, the tokens of each in random order: every count is right and nothing is said."""
    rng = torch.Generator().manual_seed(seed)
    chosen_ND = real_KD[torch.arange(num_samples) % len(real_KD)]
    return chosen_ND.gather(1, torch.rand(chosen_ND.shape, generator=rng).argsort(1))


def tail_probe(
    model: Any, *, steps: int, seed: int, settings: dict[str, Any], rare: int = 4096, expected: float = 60.0
) -> dict[str, float]:
    """How often rare tokens come, over how often they should, `tail_rate`, and the binomial p-value `tail_p` of so few or fewer.

    The network says the same everywhere: `rare` tokens of probability 1.5e-8 `steps` each, and two common ones; float32 exponential noise
    samples the rare ones about a third as often as it should. What is probed is the path that samples of `model`, a dataclass, take: its
    network is replaced, and `settings` go to its `sample_tokens`. Enough positions are sampled for `expected` rare tokens.
    """
    p = min(1.5e-8 * steps, 0.5 / rare)
    length = max(1, round(expected / (p * rare * _BATCH)))
    num_states = rare + _COMMON + 1
    bias_S = torch.full((num_states,), math.log(p))
    bias_S[rare : rare + _COMMON] = math.log((1 - rare * p) / _COMMON)
    probe: Any = dataclasses.replace(model, denoiser=_Constant(bias_S), length=length)
    tokens, _ = probe.sample_tokens(_BATCH, steps, seed=seed, batch_size=_BATCH, **settings)
    from scipy.stats import binom

    seen, trials = int((tokens < rare).sum()), tokens.numel()
    return {"tail_rate": seen / (trials * rare * p), "tail_p": float(binom.cdf(seen, trials, rare * p))}


@final
class _Constant(nn.Module):
    """A denoiser that says the same of every position."""

    def __init__(self, bias_S: Float[Tensor, " S"]) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias_S, requires_grad=False)
        self.num_states, self.mask_id = len(bias_S), len(bias_S) - 1

    def sample_latents(self, *_: Any) -> None:
        """There is no λ."""

    def output_head(self) -> OutputHead:
        """That of its predictions."""
        return LinearHead(torch.zeros_like(self.bias)[:, None], self.bias, impossible=self.mask_id)

    def forward(self, x_t: Int64[Tensor, "B D"], *_: Any) -> Prediction:
        """Features that nothing is read from."""
        return Prediction(torch.zeros(len(x_t), 1, x_t.shape[1], 1, device=x_t.device), self.output_head())
