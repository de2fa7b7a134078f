"""Tokens that are given are context to every objective, and nothing that it scores."""

import dataclasses
from typing import Any

import pytest
import torch

from di4c_lm.objectives.denoising import Denoising
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.sdtt import Sdtt
from tests.objectives.helpers import LENGTH, MASKED, TOKEN, gradients, text_batch, text_network

OBJECTIVES = [Mdlm(), Denoising(), Sdtt(), Likelihood(num_lambdas=2), Di4C(num_lambdas=2)]


@pytest.mark.parametrize("settings", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_given_tokens_are_no_part_of_the_loss(settings: Any) -> None:
    student = text_network(TOKEN if settings.takes_mixture else None, seed=2)
    objective = settings.build(student, MASKED, seed=0, teacher=text_network())
    seen: list[torch.Tensor] = []
    student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = text_batch(*range(8))
    losses = {}
    for given in (0, 4, LENGTH):
        seen.clear()
        loss, _ = objective(dataclasses.replace(batch, given=torch.full((8,), given)))
        losses[given] = float(loss.detach())
        for x_t in seen:
            assert torch.equal(
                x_t.view(8, -1, LENGTH)[..., :given],
                batch.x[:, None, :given].expand(-1, x_t.numel() // (8 * LENGTH), -1),
            )
    assert losses[LENGTH] == 0 and losses[0] != losses[4]
    found = gradients(objective, dataclasses.replace(batch, given=torch.full((8,), LENGTH)))
    assert all(not gradient.any() for gradient in found.values())
