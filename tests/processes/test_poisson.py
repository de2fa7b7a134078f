import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.processes.poisson import sample_poisson


@settings(deadline=None)
@given(st.floats(0, 5000), st.integers(0, 2**53 - 1))
def test_it_inverts_the_distribution_function(mean: float, number: int) -> None:
    u = number * 2.0**-53
    m, v = torch.tensor([mean]).double(), torch.tensor([u]).double()
    k = sample_poisson(m, v).double()
    assert float(torch.special.gammaincc(k + 1, m)) > u * (1 - 1e-9) or float(k) > mean + 12 * mean**0.5
    assert float(k) == 0 or float(torch.special.gammaincc(k, m)) <= u * (1 + 1e-9)


def test_its_draws_have_the_mean_and_the_variance() -> None:
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mean in (0.0, 0.3, 4.0, 300.0):
        drawn = sample_poisson(torch.full_like(u, mean), u).double()
        assert abs(float(drawn.mean()) - mean) <= 6 * (mean / 50_000) ** 0.5
        assert abs(float(drawn.var()) - mean) <= 0.05 * mean


def test_impossible_means() -> None:
    for mean in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mean: expected finite values of at least 0"):
            sample_poisson(torch.tensor([mean]).double(), torch.tensor([0.5]).double())
