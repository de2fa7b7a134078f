"""Mixtures whose λ is enumerated, sampled with λ summed out: each position given those before it, exactly."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.processes.denoiser import At, Positions, sample_along
from di4c_lm.processes.rng import KeyedRng
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.grids import make_grid
from di4c_lm.samplers.trajectory import Calls, Decoding, sample
from tests.measure.models import every_text, text_model
from tests.mixtures import helpers
from tests.samplers.helpers import p_value

KINDS: list[dict[str, Any]] = [
    {"codes": 3, "window": "classes"},
    {"codes": 3, "window": 1},
    {"codes": 2, "window": 2},
    {"codes": 3, "window": 0},
]


def whole(denoiser: Any, x_BD: Tensor) -> Any:
    every = denoiser.whole_latents(len(x_BD), x_BD.device)
    return denoiser(x_BD, torch.full((len(x_BD),), 0.7), every)


def walked(prediction: Any, where_BD: Tensor, x_BD: Tensor) -> tuple[Tensor, list[At]]:
    """log p of the states of `x_BD` along the walk, and the positions in the order in which they came."""
    log_p_B, order = torch.zeros(len(x_BD), dtype=torch.float64), []

    def choose(at: At, logits_NS: Tensor) -> Tensor:
        order.append(at)
        log_p_B[at[0]] += logits_NS.double().log_softmax(1).gather(1, x_BD[at][:, None])[:, 0]
        return x_BD[at]

    sample_along(prediction.walk(where_BD, 256), choose)
    return log_p_B, order


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [(0, 1, 2), (0, 2), (1,)])
@torch.no_grad()
def test_a_walk_has_the_joint_probability_of_what_is_sampled(kind: dict[str, Any], part: tuple[int, ...]) -> None:
    model, x_ND = text_model(**kind), every_text()
    prediction = whole(model.denoiser, torch.full_like(x_ND, model.denoiser.mask_id))
    where_ND = torch.zeros_like(x_ND, dtype=torch.bool)
    where_ND[:, list(part)] = True
    log_p_N, order = walked(prediction, where_ND, x_ND)
    positions = Positions.where(where_ND)
    joint_N = prediction.read(positions, positions.gather(x_ND)[:, None]).joint[:, 0]
    torch.testing.assert_close(log_p_N, joint_N, atol=1e-4, rtol=1e-4)
    assert len(order) == len(part) and float((joint_N - log_p_N[0]).abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_sequences_with_other_gaps_do_not_disturb_each_other(kind: dict[str, Any]) -> None:
    model = text_model(**kind, length=5)
    mask, x_0 = model.denoiser.mask_id, torch.tensor([[0, 1, 2, 3, 0], [3, 2, 1, 0, 1], [1, 1, 0, 2, 3]])
    masked = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    x_t = torch.where(masked, mask, x_0)
    together, _ = walked(whole(model.denoiser, x_t), masked, x_0)
    alone = [walked(whole(model.denoiser, x_t[i : i + 1]), masked[i : i + 1], x_0[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert together[2] == 0


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_confidence_in_one_step_samples_the_joint_distribution(kind: dict[str, Any]) -> None:
    model, x_ND = text_model(**kind), every_text()
    prediction = whole(model.denoiser, torch.full((1, 3), model.denoiser.mask_id))
    positions = Positions.where(torch.ones(1, 3, dtype=torch.bool))
    joint_N = prediction.read(positions, x_ND.T).joint[0].exp()
    x_init = torch.full((4000, 3), model.denoiser.mask_id)
    rng = KeyedRng(0, torch.arange(len(x_init)))
    found = sample(model.denoiser, model.process, x_init, make_grid("uniform", 1), rng, sampler="confidence")
    assert found.nfe == 1 and p_value(found.x, joint_N.view(4, 4, 4)) > 1e-3


@pytest.mark.parametrize("kind", [*KINDS, {}])
@torch.no_grad()
def test_at_temperature_0_no_chance_is_left(kind: dict[str, Any]) -> None:
    """A λ sampled first would make sequences differ; what is taken is likely by the whole mixture."""
    model = text_model(**kind, length=6)
    x_init = torch.full((20, 6), model.denoiser.mask_id)
    for sampler in (Confidence(choice_temperature=0.0), Confidence(choice_temperature=0.0, by="entropy")):
        how: dict[str, Any] = {"sampler": sampler, "decoding": Decoding(temperature=0.0)}
        rng = KeyedRng(0, torch.arange(len(x_init)))
        found = sample(model.denoiser, model.process, x_init, make_grid("uniform", 3), rng, **how).x
        assert len(found.unique(dim=0)) == 1


@torch.no_grad()
def test_the_first_state_of_a_walk_is_of_the_marginal() -> None:
    model = text_model(codes=3, window="classes")
    prediction = whole(model.denoiser, torch.full((1, 3), model.denoiser.mask_id))
    one = torch.zeros(1, dtype=torch.int64)
    walk = prediction.walk(torch.tensor([[False, True, True]]), 256)
    (_, position_N), logits_NS = next(walk)
    assert position_N.tolist() == [1]
    torch.testing.assert_close(logits_NS, prediction.marginal_logits(one, position_N))


@torch.no_grad()
def test_guidance_goes_along_one_walk() -> None:
    denoiser = helpers.on_maskgit(ClassChainSettings(codebook_size=3, freeze_backbone=False)).eval()
    x_BD = torch.full((2, helpers.CODE_LENGTH), denoiser.mask_id)
    calls = Calls(denoiser, cond=torch.zeros(2, dtype=torch.int64))
    run_B, t_B = torch.ones(2, dtype=torch.bool), torch.ones(2, dtype=torch.float64)
    call = calls(x_BD, t_B, run_B, KeyedRng(0, torch.arange(2)), guidance=1.5, whole=True)
    assert call is not None and calls.made == 4
    seen = []

    def choose(at: At, logits_NS: Tensor) -> Tensor:
        seen.append(logits_NS)
        return logits_NS.argmax(1)

    sample_along(call.walk(torch.ones_like(x_BD, dtype=torch.bool), 256), choose)
    assert len(seen) == helpers.CODE_LENGTH and not math.isnan(float(seen[-1].amax()))
