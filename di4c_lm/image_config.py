"""Settings of the CIFAR-10 domain: the chain's and the network's own, beside those that all domains share."""

from typing import Annotated

from pydantic import ConfigDict, Strict
from pydantic.dataclasses import dataclass

from di4c_lm.config import check

_STRICT = ConfigDict(extra="forbid", strict=True)
Ints = Annotated[tuple[int, ...], Strict(strict=False)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class UnetConfig:
    """tauLDR's U-Net (Campbell et al. 2022); the defaults are the published CIFAR-10 teacher's.

    Scale i has `width` times `multipliers[i]` channels and half the rows and columns of scale i - 1. `attention_scale` names the one with
    attention in it, beside the attention in the middle.
    """

    width: int = 128
    multipliers: Ints = (1, 2, 2, 2)
    res_blocks: int = 2
    attention_scale: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check(self.width >= 4 and self.width % 4 == 0, "width", self.width, "a multiple of 4, at least 4")
        many = len(self.multipliers) > 0 and min(self.multipliers) >= 1
        check(many, "multipliers", self.multipliers, "whole numbers of at least 1, one a scale")
        check(self.res_blocks >= 1, "res_blocks", self.res_blocks, "a value of at least 1")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a value in [0, 1)")
        for channels in {self.width * multiplier for multiplier in self.multipliers}:
            groups = min(channels // 4, 32)
            check(
                channels % groups == 0, "width", self.width, f"one whose {channels} channels fall into {groups} groups"
            )

    @property
    def time_conditioning(self) -> bool:
        """True: the network is told the time."""
        return True
