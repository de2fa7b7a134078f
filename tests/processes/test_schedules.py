import pytest
import torch

from di4c_lm.processes.masked import MASKGIT_SCHEDULES, LogLinear, Schedule

GRID = torch.linspace(0, 1, 101, dtype=torch.float64)


@pytest.mark.parametrize(
    "schedule, last", [(LogLinear(), 0.999), *((schedule, 1.0) for schedule in MASKGIT_SCHEDULES.values())]
)
def test_mask_probability_rises_from_0_to_its_last_value(schedule: Schedule, last: float) -> None:
    m = schedule.mask_prob(GRID)
    assert float(m[0]) == pytest.approx(0, abs=1e-15)
    assert float(m[-1]) == pytest.approx(last, abs=1e-15)
    assert bool((m.diff() > 0).all()) and bool(((m >= 0) & (m <= 1)).all())


def test_values() -> None:
    t = torch.tensor([0.25], dtype=torch.float64)
    assert float(LogLinear(eps=0.1).mask_prob(t)) == pytest.approx(0.225)
    assert float(MASKGIT_SCHEDULES["cosine"].mask_prob(t)) == pytest.approx(0.3826834323650898)
    assert float(MASKGIT_SCHEDULES["arccos"].mask_prob(t)) == pytest.approx(0.4601069123252318)  # arccos(3/4) / (pi/2)
    values = {"root": 0.13397459621556135, "linear": 0.25, "square": 0.4375, "cosine": 0.3826834323650898}
    for name, value in values.items():
        assert float(MASKGIT_SCHEDULES[name].mask_prob(t)) == pytest.approx(value)


def test_log_linear_noise_and_its_rate() -> None:
    schedule = LogLinear()
    t = GRID.clone().requires_grad_()
    sigma = schedule.sigma(t)
    torch.testing.assert_close(-torch.expm1(-sigma), schedule.mask_prob(t))
    (slope,) = torch.autograd.grad(sigma.sum(), t)
    torch.testing.assert_close(slope, schedule.rate(t.detach()))
