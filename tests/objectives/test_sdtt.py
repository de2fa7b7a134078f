"""SDTT's objective on small networks: its times, its targets, and what they depend on."""

from typing import Any

import pytest
import torch

from di4c_lm.objectives.sdtt import Sdtt, SdttObjective
from di4c_lm.processes.denoiser import Positions
from di4c_lm.processes.rng import KeyedRng
from tests.objectives.helpers import (
    GAUSSIAN,
    LENGTH,
    MASK,
    MASKED,
    STATES,
    check_batch_is_mean_of_examples,
    pixel_network,
    text_batch,
    text_network,
)


def objective(student: int = 1, teacher: int = 2, **settings: Any) -> SdttObjective:
    chosen = Sdtt(**{"dt": 0.125, **settings})
    return chosen.build(text_network(None, student), MASKED, seed=3, teacher=text_network(None, teacher))


def test_exact_steps_follow_each_other_and_stay_above_zero() -> None:
    t = torch.tensor([0.9, 0.5, 0.1, 1.0]).double()
    steps = Sdtt(dt=0.0625, round=2, teacher_steps=3).times(t)
    h = torch.tensor([0.125, 0.125, 0.1 / 3, 0.125]).double()
    for k, (start, end) in enumerate(steps):
        torch.testing.assert_close(start, t - k * h)
        torch.testing.assert_close(end, t - (k + 1) * h)
        assert (end >= -1e-12).all()


def test_legacy_steps_are_the_published_mis_interpolation() -> None:
    t = torch.tensor([0.9, 0.5, 0.1]).double()
    (start, end), (second, _) = Sdtt(dt=1 / 1024, time_grid="legacy").times(t)
    # reference values: at t = 0.9 the teacher is asked at 0.9898 and 0.0898, not at 0.9 and 0.899
    assert start[0] == pytest.approx(0.9898, abs=1e-4)
    assert second[0] == pytest.approx(0.0898, abs=1e-4)
    exact_share, legacy_share = 1 / 1024 / t, 1 - end / start
    torch.testing.assert_close(
        legacy_share / exact_share, torch.tensor([0.91, 0.67, 0.53]).double(), atol=0.005, rtol=0
    )


def test_a_batch_is_the_mean_of_its_examples() -> None:
    ids = (0, 5, 9, 11)
    check_batch_is_mean_of_examples(objective(teacher_steps=3), text_batch(*ids), [text_batch(i) for i in ids])


@pytest.mark.parametrize("divergence", ["kl_backward", "kl_forward", "mse", "tv"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_one_step(divergence: str) -> None:
    of = objective(student=2, divergence=divergence, teacher_steps=1)
    loss, metrics = of(text_batch(0, 1, 2))
    assert loss.abs() < 1e-9
    assert metrics["divergence_per_token"].abs() < 1e-9
    assert objective(student=2, divergence=divergence)(text_batch(0, 1, 2))[0] > 1e-6, "two steps see more than one"


def test_targets_are_of_the_step_that_reveals_and_of_the_last_where_none_does() -> None:
    of = objective(teacher_steps=2, dt=0.5)
    x_t = torch.full((40, LENGTH), MASK)
    t = torch.ones(40).double()
    positions = Positions.where(x_t == MASK)
    target_BDS = of.targets(x_t, positions, t, KeyedRng(0, torch.arange(40))).view(40, LENGTH, STATES)
    with torch.no_grad():
        first_BDS = of.teacher(x_t, t.float()).log_probs()[:, 0]
    of_first_BD = (target_BDS - first_BDS).abs().amax(2) < 1e-9
    assert of_first_BD.double().mean() == pytest.approx(0.5, abs=0.1), "a step from 1 to 1/2 reveals half"
    assert (target_BDS.exp().sum(2) - 1).abs().max() < 1e-9
    # Where the second step speaks, it has read what the first revealed: it differs between sequences.
    assert len(target_BDS[~of_first_BD].round(decimals=6).unique(dim=0)) > len(first_BDS[0].unique(dim=0))


def test_gradients_reach_the_student_alone() -> None:
    of = objective()
    of(text_batch(0, 1))[0].backward()
    assert all(name.startswith("student.") for name, _ in of.named_parameters())
    assert of.student.output_layer.linear.weight.grad.abs().sum() > 0  # pyright: ignore
    assert all(p.grad is None for p in of.teacher.parameters())


def test_a_process_that_does_not_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="objective must be another where noise is not masking, got 'sdtt'"):
        Sdtt().build(pixel_network(), GAUSSIAN, seed=0, teacher=pixel_network())


def test_steps_that_do_not_fit_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"dt \* growth\^\(round - 1\) must be at most 1 / teacher_steps = 0.5, got 1.0"
    ):
        Sdtt(dt=0.5, round=2)
