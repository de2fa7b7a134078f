"""Times in proportion to the root of the second moment of the loss."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from di4c_lm.data.batches import batch_rng
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.objectives.least_variance import BINS, LeastVarianceTimes
from di4c_lm.objectives.mdlm import Mdlm
from tests.objectives.helpers import GAUSSIAN, LENGTH, MASKED, pixel_batch, pixel_network, text_batch, text_network

U = 1 - (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def alone(values: Tensor) -> Tensor:
    return values


def steep(t: Tensor) -> Tensor:
    return 1 / (t + 0.05)


def learned(low: float = 0.0) -> LeastVarianceTimes:
    times = LeastVarianceTimes(low)
    for _ in range(20):
        t, _ = times.sample(U[::40])
        times.record(t, steep(t))
        times.adapt(alone)
    return times


def test_before_anything_is_seen_times_are_uniform() -> None:
    t, density = LeastVarianceTimes(0.25).sample(U)
    torch.testing.assert_close(t, 0.25 + 0.75 * U)
    assert density.unique().tolist() == [1.0]


@pytest.mark.parametrize("low", [0.0, 0.2])
def test_weighed_by_its_density_a_loss_has_its_mean_and_less_variance(low: float) -> None:
    t, density = learned(low).sample(U)
    assert float(t.min()) > low and float(t.max()) <= 1 and bool((t.diff() < 0).all())
    plain, weighed = steep(low + (1 - low) * U), steep(t) / density
    assert float(weighed.mean()) == pytest.approx(float(plain.mean()), rel=1e-3)
    assert float(weighed.var()) < 0.1 * float(plain.var())
    assert float((1 / density).mean()) == pytest.approx(1, abs=1e-3)


def test_ranks_add_up_and_an_update_that_is_not_finite_is_left_out() -> None:
    whole, half = LeastVarianceTimes(0.0), LeastVarianceTimes(0.0)
    for times, twice in ((whole, 1), (half, 2)):
        for part in U[::100].chunk(3 - twice):
            times.record(part, steep(part))
        times.adapt(lambda values: values)
    one, other = LeastVarianceTimes(0.0), LeastVarianceTimes(0.0)
    for times, part in zip((one, other), U[::100].chunk(2), strict=True):
        times.record(part, steep(part))
    kept: list[Tensor] = []
    one.adapt(lambda values: kept.append(values) or values)
    other.adapt(lambda values: values + kept[0])
    torch.testing.assert_close(other.seen_2K, whole.seen_2K)
    before = whole.seen_2K.clone()
    whole.record(U[:2], torch.tensor([1.0, torch.nan]))
    whole.adapt(alone)
    assert torch.equal(whole.seen_2K, before)


def test_state_comes_back_exactly() -> None:
    times, again = learned(), LeastVarianceTimes(0.0)
    again.load_state_dict(json.loads(json.dumps(times.state_dict())))
    assert torch.equal(again.density, times.density) and len(again.density) == BINS


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_mdlm_weighs_by_the_density_and_reports_the_bound(power: float) -> None:
    of = Mdlm(times="least_variance", weight_power=power).build(text_network(None, 1), MASKED, seed=0)
    of.adaptive = learned()
    batch = text_batch(*range(40))
    nats_B, t_B, density_B = of.cross_entropy(batch)
    assert float(density_B.max() / density_B.min()) > 2
    loss, told = of(batch)
    torch.testing.assert_close(loss, ((2 - power) * nats_B / t_B**power / density_B).mean())
    torch.testing.assert_close(told["bound_per_token"], (nats_B / t_B / density_B).mean() / LENGTH)
    before = of.adaptive.seen_2K
    of.adaptive.adapt(alone)
    assert float(of.adaptive.seen_2K[1].sum()) == pytest.approx(0.99 * float(before[1].sum()) + 40)


def test_images_learn_their_times_too_and_a_trained_network_sees_few_that_are_easy() -> None:
    settings: Any = Denoising(times="least_variance")
    of = settings.build(pixel_network(), GAUSSIAN, seed=0)
    assert of.adaptive.low == GAUSSIAN.min_time
    of(pixel_batch(*range(12)))
    of.adaptive.adapt(alone)
    assert float(of.adaptive.seen_2K[1].sum()) == 12
    t_B, _ = settings.sample_times(pixel_batch(*range(9)), batch_rng(0, pixel_batch(*range(9))), 0.01, of.adaptive)
    assert float(t_B.min()) > GAUSSIAN.min_time


def test_complementary_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="masks must be independent where times=least_variance, got 'complementary'"):
        dataclasses.replace(Denoising(times="least_variance"), masks="complementary")
