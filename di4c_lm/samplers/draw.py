"""How logits become tokens: temperature, nucleus, and exact or published noise."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from di4c_lm.processes.rng import Rng, uniform

Noise = Literal["exact", "legacy_fp32"]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The law of a token given its logits.

    `temperature` divides the logits. `top_p` below 1 keeps the smallest set of the likeliest states that holds at least this probability
    (Holtzman et al. 2020). `noise`: `exact` (inverse distribution function in float64), or `legacy_fp32`, the published codes' float32
    exponential noise over tokens and MASK together, which truncates rare tokens: for old tables only.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    noise: Noise = "exact"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.noise not in get_args(Noise):
            raise ValueError(f"noise must be one of {', '.join(get_args(Noise))}, got {self.noise!r}")

    def weights(self, logits_NS: Float[Tensor, "N S"]) -> Float[Tensor, "N S"]:
        """Unnormalised probabilities; `logits_NS` is used up."""
        if self.temperature != 1:
            logits_NS = logits_NS.div_(self.temperature)
        p_NS = logits_NS.sub_(logits_NS.amax(1, keepdim=True)).exp_()
        return p_NS if self.top_p == 1 else _nucleus(p_NS, self.top_p)


def _nucleus(p_NS: Float[Tensor, "N S"], top_p: float) -> Float[Tensor, "N S"]:
    sorted_NS = p_NS.sort(1, descending=True).values
    below_NS = sorted_NS.cumsum(1, dtype=torch.float64) - sorted_NS
    kept_N = (below_NS < top_p * p_NS.sum(1, keepdim=True, dtype=torch.float64)).sum(1, keepdim=True)
    return torch.where(p_NS >= sorted_NS.gather(1, kept_N - 1), p_NS, 0.0)


def single_precision_uniform(rng: Rng, shape: tuple[int, ...], device: torch.device) -> Float[Tensor, "..."]:
    """Float32 uniforms on multiples of 2^-24 in [0, 1), as `torch.rand` gives them."""
    u: Float64[Tensor, ...] = uniform(rng, shape, device)
    return ((u * 2**24).floor() * 2.0**-24).float()
