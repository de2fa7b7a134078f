"""The learning rate as a plain function of the step: nothing to save, nothing to resume."""

import math

from di4c_lm.training.settings import OptimConfig


def learning_rate(step: int, optim: OptimConfig, total_steps: int) -> float:
    """Learning rate of update number `step` (from 0) of `total_steps`.

    Linear from lr/warmup_steps to lr over the warm-up; then lr, or half a cosine down to lr/10 at the last update.
    """
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    done = (step - optim.warmup_steps) / max(1, total_steps - 1 - optim.warmup_steps)
    low = optim.lr / 10
    return low + (optim.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
