"""MDLM's objective: its bound, and its antithetic times."""

from typing import Any

import pytest
import scipy.stats
import torch
from torch import Tensor

from di4c_lm.data.batches import Batch, BatchStream, PackedSource, batch_rng
from di4c_lm.networks.dit import DIT
from di4c_lm.objectives.denoising import Denoising
from di4c_lm.objectives.mdlm import Mdlm, MdlmObjective
from di4c_lm.processes.masked import MASKGIT_SCHEDULES, MaskedProcess
from tests.objectives.helpers import (
    GAUSSIAN,
    LENGTH,
    MASK,
    MASKED,
    STATES,
    TEXT,
    check_batch_is_mean_of_examples,
    text_batch,
    text_network,
)


def stream() -> BatchStream:
    """Global batches of 12 sequences."""
    source = PackedSource(torch.arange(48 * LENGTH).view(48, LENGTH).remainder(MASK).numpy(), seed=0)
    return BatchStream(source, micro_batch_size=12, rank=0, world_size=1, stratified=True)


def objective(seed: int = 1) -> MdlmObjective:
    return Mdlm().build(text_network(None, seed), MASKED, seed=0)


def test_a_batch_is_the_mean_of_its_examples() -> None:
    check_batch_is_mean_of_examples(objective(), text_batch(*range(5)), [text_batch(i) for i in range(5)])


def test_the_bound_of_a_uniform_network_is_log_s() -> None:
    """E over t and masks of (1/t) Σ_masked log(S - 1) is D (1 - eps) log(S - 1): the weight undoes the rate of masking."""
    of = Mdlm().build(
        DIT(TEXT, num_states=STATES), MASKED, seed=0
    )  # its output head is zero: every state is equally likely
    values = torch.stack([of(text_batch(*range(k, k + 50)))[1]["bound_per_token"] for k in range(0, 10_000, 50)])
    assert abs(float(values.mean()) / torch.log(torch.tensor(STATES - 1.0)) - 1) < 0.03


def test_the_times_of_a_stratified_batch_are_antithetic() -> None:
    """One in each of the global batch's equal parts of (0, 1]; of a plain batch they are independent."""
    of, batches, seen = objective(), stream(), []
    run = of.student.forward

    def forward(x_t: Tensor, t: Tensor, *rest: object, **_: object) -> object:
        seen.append(t)
        return run(x_t, t, *rest)

    setattr(of.student, "forward", forward)  # noqa: B010
    for _ in range(4):
        batch = next(batches)
        of(batch)
        assert sorted(((1 - seen[-1].double()) * 12).floor().int().tolist()) == list(range(12))
        of(Batch(x=batch.x, sample_id=batch.sample_id, epoch=batch.epoch))
    plain = torch.stack(seen[1::2])
    assert any(len(((1 - t_B) * 12).floor().unique()) < 12 for t_B in plain)
    assert float(torch.stack(seen).min()) > 0 and float(torch.stack(seen).max()) <= 1


def test_antithetic_times_estimate_the_same_bound() -> None:
    of, slotted, plain = objective(), stream(), stream()

    def losses(*, stratified: bool) -> Tensor:
        found = []
        for _ in range(40):
            one = next(slotted if stratified else plain)
            batch = one if stratified else Batch(x=one.x, sample_id=one.sample_id, epoch=one.epoch)
            found.append(of(batch)[0].detach())
        return torch.stack(found)

    antithetic, independent = losses(stratified=True), losses(stratified=False)
    spread = (antithetic.var() / 40 + independent.var() / 40).sqrt()
    assert (antithetic.mean() - independent.mean()).abs() < 4 * spread


@pytest.mark.parametrize(
    "process", [GAUSSIAN, MaskedProcess(MASK, MASKGIT_SCHEDULES["arccos"])], ids=["Gaussian", "arccos"]
)
def test_another_schedule_is_refused(process) -> None:
    with pytest.raises(ValueError, match="objective must be denoising where noise is not masking at a log-linear rate"):
        Mdlm().build(text_network(), process, seed=0)


def test_what_a_run_must_know() -> None:
    assert not Mdlm().needs_teacher and Mdlm(init="teacher").needs_teacher
    assert Mdlm().antithetic and not Mdlm(times="iid").antithetic
    assert Mdlm(init="teacher").label == "mdlm"


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_weight_of_a_token_is_a_power_of_one_over_t_and_the_bound_is_reported_all_the_same(power: float) -> None:
    batch, whole = text_batch(*range(40)), objective()
    of = Mdlm(weight_power=power).build(text_network(None, 1), MASKED, seed=0)
    nats_B, t_B, _ = whole.cross_entropy(batch)
    loss, told = of(batch)
    expected_B = (2 - power) * nats_B / t_B.double() ** power
    torch.testing.assert_close(loss, expected_B.mean())
    torch.testing.assert_close(told["bound_per_token"], whole(batch)[1]["bound_per_token"])
    assert torch.equal(loss, whole(batch)[0]) == (power == 1)


def test_a_masked_token_weighs_one_on_average_whatever_the_power() -> None:
    """E_t of the share of masked tokens, t, times (2 - p) t^-p is 1: rates and clipping need not be found anew."""
    t = torch.linspace(1e-4, 1, 100_001, dtype=torch.float64)
    for power in (0.0, 0.5, 1.0):
        assert float(((2 - power) * t ** (1 - power)).mean()) == pytest.approx(1, abs=1e-3)


def test_a_power_outside_of_0_to_1_is_named() -> None:
    with pytest.raises(ValueError, match=r"weight_power must be in \[0, 1\], got 1.5"):
        Mdlm(weight_power=1.5)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_bell_shaped_times_report_the_bound(power: float) -> None:
    """Each example by its density: the loss alone leans to the middle."""
    of, batch = Mdlm(times="bell", weight_power=power).build(text_network(None, 1), MASKED, seed=0), next(stream())
    nats_B, t_B, density_B = of.cross_entropy(batch)
    loss, told = of(batch)
    torch.testing.assert_close(loss, ((2 - power) * nats_B / t_B**power).mean())
    torch.testing.assert_close(told["bound_per_token"], (nats_B / t_B / density_B).mean() / LENGTH)
    assert float(density_B.max() / density_B.min()) > 2


def test_the_cross_entropy_of_bell_shaped_times_is_reported_as_that_of_uniform_ones() -> None:
    bell, uniform = (
        Denoising(times="bell", bell_mean=0.4, bell_std=0.3).build(text_network(None, 1), MASKED, seed=0),
        Denoising().build(text_network(None, 1), MASKED, seed=0),
    )
    batches, found = stream(), []
    for _ in range(80):
        batch = next(batches)
        loss, told = bell(batch)
        found.append((float(loss), float(told["cross_entropy"]), float(uniform(batch)[0])))
    loss, metric, reference = torch.tensor(found, dtype=torch.float64).T
    assert (metric.mean() - reference.mean()).abs() < 4 * (metric.var() / 80 + reference.var() / 80).sqrt()
    assert loss.mean() < 0.95 * reference.mean()


def test_bell_shaped_times_are_a_normal_cut_off_at_0_and_1() -> None:
    settings, batch = Mdlm(times="bell", bell_mean=0.4, bell_std=0.3), next(stream())
    t, density = (
        torch.cat(parts)
        for parts in zip(*(settings.sample_times(batch, batch_rng(i, batch), 0.0) for i in range(2000)), strict=True)
    )
    assert float(t.min()) > 0 and float(t.max()) <= 1
    reference: Any = scipy.stats.truncnorm(-0.4 / 0.3, 0.6 / 0.3, loc=0.4, scale=0.3)
    assert scipy.stats.kstest(t.numpy(), reference.cdf).statistic < 0.01
    torch.testing.assert_close(density, torch.from_numpy(reference.pdf(t.numpy())))
    assert float((1 / density).mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "key, value, allowed",
    [("bell_mean", 1.5, r"in \[0, 1\]"), ("bell_std", 0.0, "above 0"), ("times", "late", "one of")],
)
def test_a_bell_without_a_shape_is_named(key: str, value: object, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"{key} must be {allowed}"):
        Mdlm(**{key: value})  # pyright: ignore[reportArgumentType]


def test_complementary_masks_hide_each_position_once_and_estimate_the_same_bound() -> None:
    of, seen = Mdlm(masks="complementary").build(text_network(None, 1), MASKED, seed=0), []
    run = of.student.forward

    def forward(x_t: Tensor, t: Tensor, *rest: object, **_: object) -> object:
        seen.append((x_t, t))
        return run(x_t, t, *rest)

    setattr(of.student, "forward", forward)  # noqa: B010
    batches, plainly = stream(), objective()
    found = {"complementary": [], "independent": []}
    for _ in range(40):
        batch = next(batches)
        found["complementary"].append(of(batch)[0].detach())
        found["independent"].append(plainly(batch)[0].detach())
    for x_t, t in seen:
        (one, other), (t_B, s_B) = (x_t == MASK).chunk(2), t.chunk(2)
        assert bool((one ^ other).all())
        torch.testing.assert_close(MASKED.schedule.mask_prob(t_B) + MASKED.schedule.mask_prob(s_B), torch.ones(12))
    pairs, plain = (torch.stack(values) for values in found.values())
    assert (pairs.mean() - plain.mean()).abs() < 4 * (pairs.var() / 40 + plain.var() / 40).sqrt()


@pytest.mark.parametrize("process", [MaskedProcess(MASK, MASKGIT_SCHEDULES["cosine"]), GAUSSIAN])
def test_masks_without_a_complement_are_refused(process) -> None:
    with pytest.raises(
        ValueError, match="masks must be independent where noise is not linear masking, got 'complementary'"
    ):
        Denoising(masks="complementary").build(text_network(), process, seed=0)
