"""Text longer than the network's context, window after window."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from di4c_lm.core.settings import at_least, check, choice, section, setting
from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.trajectory import Trajectory


def _others() -> dict[str, Any]:
    """All samplers but `blocks`."""
    from di4c_lm.samplers.registry import SAMPLERS

    return {name: entry for name, entry in SAMPLERS.items() if name != "blocks"}


@final
@section
class Blocks:
    """Semi-autoregressive sampling, window after window, for text longer than the context (Sahoo et al. 2024).

    Section 5.4 there; see also Han et al. 2023. The first window is the first `context` positions; each next one reaches `block`
    positions further and is given the last `context` - `block` of what was written. Each window goes down the whole grid by `inner`.

    With `ahead` it is the block-wise decoding of LLaDA (Nie et al. 2025, section 2.4): block after block from the first position on, and
    the network sees the masks behind the block too, as far as its context reaches. A network that takes the time gets that of the block.
    """

    needs: ClassVar[type] = MaskedProcess
    context: int = setting(0, "positions the network sees at once; 0: as many as it was trained on")
    block: int = setting(0, "positions that each window adds; 0: half the context")
    ahead: bool = setting(False, "the network sees what is still masked behind the block too, as in LLaDA's decoding")
    inner: Any = choice(_others, Ancestral(), "sampler used in each window")

    def __post_init__(self) -> None:
        at_least(self, 0, "context", "block")
        check(self.context == 0 or self.block <= self.context, "block", self.block, f"at most context={self.context}")

    def steps(self, trajectory: Trajectory, x: Int64[Tensor, "B D"]) -> Iterator[Int64[Tensor, "B D"]]:
        """The whole sequences after each step of each window."""
        process, length = trajectory.needs(MaskedProcess), x.shape[1]
        context = self.context or length
        block = self.block or max(1, context // 2)
        end = min(block if self.ahead else context, length)
        while True:
            stop = min(length, max(end, context)) if self.ahead else end
            start = max(0, stop - context)
            given, before, after = x[:, start:stop], x[:, :start], x[:, stop:]
            log_p_BD, within = trajectory.log_p_BD, dataclasses.replace(process, until=end - start)
            window = dataclasses.replace(
                trajectory,
                process=within,
                fixed_BD=~within.unknown(given),
                log_p_BD=None if log_p_BD is None else log_p_BD[:, start:stop],
            )
            for inside in self.inner.steps(window, given):
                x = torch.cat([before, inside, after], 1)
                yield x
            if end == length:
                return
            end = min(end + block, length)
