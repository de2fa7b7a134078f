"""Predictions of x_0 that need no network."""

import torch
from torch import Tensor

from di4c_lm.processes.categorical import sample_categorical
from di4c_lm.processes.process import Predict
from di4c_lm.processes.rng import Rng, uniform


def fixed(p: Tensor, *, everywhere: bool = False) -> Predict:
    """x_0 from the probabilities `p`: (S,), or (S, S) with a row for each state of x_t; where needed, or everywhere."""

    def predict(x_t: Tensor, t: Tensor, needed: Tensor, rng: Rng) -> Tensor:
        p_NS = p.expand(x_t.numel(), -1) if p.dim() == 1 else p[x_t.flatten()]
        x_0 = sample_categorical(p_NS, uniform(rng, tuple(x_t.shape), x_t.device).flatten()).view_as(x_t)
        return x_0 if everywhere else torch.where(needed, x_0, x_t)

    return predict
