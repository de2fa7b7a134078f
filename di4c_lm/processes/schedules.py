"""How likely a position is masked at time t: m(0) is about 0, m(1) about 1."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Schedule(Protocol):
    """A masking schedule; `mask_prob` rises with t."""

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Probability that a position is masked at time `t` in [0, 1]."""
        ...


@dataclass(frozen=True)
class LogLinear:
    """MDLM's log-linear noise: sigma(t) = -log(1 - (1 - eps) t), so m(t) = (1 - eps) t (Sahoo et al. 2024, section 3)."""

    eps: float = 1e-3

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """(1 - eps) t."""
        return (1 - self.eps) * t

    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Total noise, -log(1 - m(t))."""
        return -torch.log1p(-(1 - self.eps) * t)

    def rate(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """d sigma / dt."""
        return (1 - self.eps) / (1 - (1 - self.eps) * t)


@dataclass(frozen=True)
class Cosine:
    """m(t) = cos(pi (1 - t) / 2), the cosine schedule of MaskGIT (Chang et al. 2022) in time 1 - r."""

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """cos(pi (1 - t) / 2)."""
        return torch.cos((1 - t) * (math.pi / 2)).clamp(0, 1)


@dataclass(frozen=True)
class Arccos:
    """m(t) = arccos(1 - t) / (pi / 2), the schedule that MaskGIT-pytorch trains with, in time t = 1 - r."""

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """arccos(1 - t) / (pi / 2)."""
        return torch.arccos((1 - t).clamp(-1, 1)) / (math.pi / 2)


@dataclass(frozen=True)
class Root:
    """m(t) = 1 - sqrt(1 - t): of the schedules that MaskGIT compares (Chang et al. 2022, section 3.3), the one that reveals soonest."""

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """1 - sqrt(1 - t)."""
        return 1 - (1 - t).clamp_min(0).sqrt()


@dataclass(frozen=True)
class Square:
    """m(t) = 1 - (1 - t)^2, of the schedules that MaskGIT compares."""

    def mask_prob(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """1 - (1 - t)^2."""
        return 1 - (1 - t) ** 2


# MaskGIT's schedules by their published names, in time t = 1 - r.
MASKGIT_SCHEDULES: dict[str, Schedule] = {
    "root": Root(),
    "linear": LogLinear(eps=0.0),
    "square": Square(),
    "cosine": Cosine(),
    "arccos": Arccos(),
}
