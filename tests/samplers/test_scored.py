"""What each token was sampled with: the probability that the network gave it in the call that revealed it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.processes.masked import MaskedProcess
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.registry import make_sampler
from di4c_lm.samplers.trajectory import Decoding, sample
from tests.samplers.helpers import Joint, product

MARGINALS = [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.7, 0.1, 0.2]
MASK = 3
EVERY: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("ancestral", {}, {}),
    ("ancestral", {}, {"noise": "legacy_fp32"}),
    ("analytic", {}, {"end": "argmax"}),
    ("first_hitting", {}, {}),
    ("first_hitting_parallel", {}, {}),
    ("left_to_right", {}, {}),
    ("confidence", {}, {}),
    ("remasking", {"eta": 0.5}, {}),
    ("predictor_corrector", {"corrections": 2}, {}),
    ("blocks", {"context": 3, "block": 1}, {}),
]


def scored(name: str, options: dict, decoding: Decoding, x_init: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The samples, and every state with the probabilities of its tokens."""
    seen: list[tuple[Tensor, Tensor]] = []
    found = sample(
        Joint(product(*MARGINALS)),
        MaskedProcess(MASK),
        x_init,
        make_grid("uniform", 3),
        KeyedRng(0, torch.arange(len(x_init))),
        sampler=make_sampler(name, options),
        decoding=decoding,
        on_scored=lambda x, log_p, step: seen.insert(step, (x.clone(), log_p.clone())),
    )
    assert torch.equal(seen[0][0], x_init) and not bool(seen[0][1].any())
    return found.x, seen


@pytest.mark.parametrize("name, options, how", EVERY)
def test_every_sampler_says_with_what_probability_a_token_was_sampled(name: str, options: dict, how: dict) -> None:
    x_init = torch.tensor([[MASK, 1, MASK, MASK]]).repeat(40, 1)
    x, seen = scored(name, options, Decoding(**how), x_init)
    p_DS = torch.tensor(MARGINALS)
    if name == "blocks":  # `Joint` takes the positions of each window for the first
        p_DS[3] = p_DS[2]
    for state_BD, log_p_BD in seen:
        for d in (0, 2, 3):
            shown_B = state_BD[:, d] != MASK
            wanted_B = p_DS[d, state_BD[shown_B, d]].log().double()
            torch.testing.assert_close(log_p_BD[shown_B, d], wanted_B, rtol=0, atol=1e-5)
    assert not bool(seen[-1][1][:, 1].any())  # given, not sampled
    assert torch.equal(seen[-1][0], x)


def test_temperature_and_nucleus_are_in_the_probability() -> None:
    x_init = torch.full((50, 4), MASK)
    _, seen = scored("ancestral", {}, Decoding(temperature=0.5, top_p=0.7), x_init)
    state_BD, log_p_BD = seen[-1]
    kept = torch.tensor([0.25, 0.09]) / 0.34  # squares; 0.25 of 0.38 is less than 0.7, with 0.09 it is more
    torch.testing.assert_close(log_p_BD[:, 0], kept[state_BD[:, 0]].log().double(), rtol=0, atol=1e-5)
