"""The optimizer that DeepSpeed gets: AdamW, with its groups of parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from di4c_lm.training.settings import OptimConfig


class ClippedAdamW(torch.optim.AdamW):
    """AdamW that clips by global norm and skips what is not finite, as DeepSpeed's own wrappers do at the other stages.

    DeepSpeed reads `overflow` and `_global_grad_norm` from whatever stands as its optimizer.
    """

    def __init__(self, groups: list[dict[str, Any]], *, clip_norm: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self._clip_norm = clip_norm
        self._global_grad_norm = 0.0
        self.overflow = False

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update, or none where the gradient is not finite."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.overflow = not bool(norm.isfinite())
        self._global_grad_norm = float("inf") if self.overflow else norm.item()
        if self.overflow:
            return
        torch.nn.utils.clip_grads_with_norm_(
            [p for group in self.param_groups for p in group["params"]], self._clip_norm, norm
        )
        super().step()


def parameter_groups(
    trained: Mapping[str, nn.Parameter], optim: OptimConfig, is_latent: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """One group, or two where the parameters of the λ path learn at a rate of their own."""
    scales = {name: optim.latent_lr_scale if is_latent(name) else 1.0 for name in trained}
    return [
        {"params": [p for name, p in trained.items() if scales[name] == scale], "lr": optim.lr, "lr_scale": scale}
        for scale in sorted(set(scales.values()))
    ]
