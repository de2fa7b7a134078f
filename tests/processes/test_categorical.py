import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.processes.categorical import kl_divergence, sample_categorical, sample_categorical_fp32, sample_poisson

SIZES = [1, 2, 255, 256, 257, 511, 512, 513, 1000]


def distribution(num_states: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A distribution with many zeros, at both ends too."""
    rng = torch.Generator().manual_seed(seed)
    p_S = torch.randn(num_states, generator=rng, dtype=torch.float64).mul(3).exp()
    p_S[torch.rand(num_states, generator=rng) < 0.4] = 0
    if num_states > 3:
        p_S[[0, -1]] = 0
    if not bool((p_S > 0).any()):
        p_S[num_states // 2] = 1
    return p_S.to(dtype)


@pytest.mark.parametrize("num_states", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_state_owns_an_interval_as_long_as_its_probability(num_states: int, dtype: torch.dtype) -> None:
    p_S = distribution(num_states, num_states, dtype)
    count = 20_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = sample_categorical(p_S[None], u[None])[0]
    assert bool((found.diff() >= 0).all())
    share = found.bincount(minlength=num_states).double() / count
    exact = p_S.double() / p_S.double().sum()
    torch.testing.assert_close(share, exact, rtol=0, atol=1.01 / count + 1e-6)
    assert bool((share[exact == 0] == 0).all())


def test_sums_of_blocks_keep_the_digits_of_float64() -> None:
    """Two blocks of states, the first the likelier by 1e-9: a uniform a little above a half still falls into it."""
    p_S = torch.zeros(512, dtype=torch.float64)
    p_S[3], p_S[300] = 1 + 1e-9, 1.0
    assert sample_categorical(p_S[None], torch.tensor([0.5 + 1e-10], dtype=torch.float64)).item() == 3


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SIZES), st.integers(0, 1000), st.integers(0, 1000))
def test_draws_equal_the_plain_inverse_function(num_states: int, seed: int, draw_seed: int) -> None:
    p_S = distribution(num_states, seed)
    u = torch.rand(64, generator=torch.Generator().manual_seed(draw_seed), dtype=torch.float64)
    cdf_S = p_S.cumsum(0) / p_S.sum()
    expected = torch.searchsorted(cdf_S, u, right=True)
    margin = (cdf_S[:, None] - u).abs().min(0).values
    found = sample_categorical(p_S[None], u[None])[0]
    assert torch.equal(found[margin > 1e-12], expected[margin > 1e-12])


@pytest.mark.parametrize("edge", [0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("num_states", SIZES)
def test_a_state_of_probability_0_is_never_drawn(num_states: int, edge: float) -> None:
    for seed in range(20):
        p_S = distribution(num_states, seed, torch.float32)
        found = int(sample_categorical(p_S[None], torch.tensor([edge], dtype=torch.float64))[0])
        assert p_S[found] > 0


@pytest.mark.parametrize("place", [0, 300, 999])
@pytest.mark.parametrize("rare", [1e-5, 1e-7, 1e-12])
def test_rare_states_come_at_their_rate(rare: float, place: int) -> None:
    """The ends of the rare state's interval, found by bisection: float32 noise would truncate it."""
    p_S = torch.full((1000,), (1 - rare) / 999, dtype=torch.float32)
    p_S[place] = rare
    exact = p_S.double() / p_S.double().sum()

    def edge(above: bool) -> float:  # noqa: FBT001
        low, high = 0.0, 1.0
        for _ in range(70):
            middle = (low + high) / 2
            found = int(sample_categorical(p_S[None], torch.tensor([middle], dtype=torch.float64))[0])
            low, high = (low, middle) if found > place or (found == place and not above) else (middle, high)
        return high

    length = edge(above=True) - edge(above=False)
    assert length == pytest.approx(float(exact[place]), rel=1e-6, abs=1e-15)


def test_rates_of_independent_draws() -> None:
    p_S = torch.tensor([1e-3, 0.0, 0.2, 0.3, 0.499])
    count = 200_000
    u = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    observed = sample_categorical(p_S[None], u[None])[0].bincount(minlength=5)
    expected = p_S * count
    kept = p_S > 0
    assert float(((observed - expected) ** 2 / expected)[kept].sum()) < 25  # 3 degrees of freedom: once in 70 000 times
    assert observed[1] == 0


def test_float32_noise_truncates_a_rare_state() -> None:
    p_NS = torch.tensor([1 - 1e-9, 1e-9]).expand(2**18, 2)
    u_NS = torch.rand(2**18, 2, generator=torch.Generator().manual_seed(0))
    u_NS[:, 0], u_NS[:, 1] = 1e-30, 1 - 2.0**-24  # as much for the rare state as float32 uniforms can say
    assert bool((sample_categorical_fp32(p_NS, u_NS) == 0).all())


def test_rows_and_shapes() -> None:
    p_NS = torch.eye(4, dtype=torch.float64)[[2, 0, 3]]
    assert sample_categorical(p_NS, torch.rand(3, dtype=torch.float64)).tolist() == [2, 0, 3]
    assert sample_categorical(p_NS, torch.rand(3, 2, dtype=torch.float64)).tolist() == [[2, 2], [0, 0], [3, 3]]
    assert sample_categorical(p_NS[:0], torch.rand(0, dtype=torch.float64)).shape == (0,)
    assert sample_categorical(p_NS, torch.rand(3, 0, dtype=torch.float64)).shape == (3, 0)


@pytest.mark.usefixtures("no_shape_checks")
def test_uniforms_for_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 rows.*\(2,\)"):
        sample_categorical(torch.ones(3, 4), torch.rand(2, dtype=torch.float64))


def test_the_divergence_is_that_of_the_definition_and_exact_where_the_two_are_near() -> None:
    q_MS, p_MS = (torch.randn(4, 9, generator=torch.Generator().manual_seed(n)).double().softmax(1) for n in (0, 1))
    q_MS[0, 3:] = 0  # q may vanish
    q_MS[0] /= q_MS[0].sum()
    expected_M = torch.where(q_MS > 0, q_MS * (q_MS.clamp_min(1e-300).log() - p_MS.log()), 0.0).sum(1)
    torch.testing.assert_close(kl_divergence(q_MS, p_MS.log()), expected_M)
    assert float(kl_divergence(p_MS, p_MS.log()).abs().max()) < 1e-15


@settings(deadline=None)
@given(st.floats(0, 5000), st.integers(0, 2**53 - 1))
def test_a_poisson_number_inverts_the_distribution_function(mean: float, number: int) -> None:
    u = number * 2.0**-53
    m, v = torch.tensor([mean]).double(), torch.tensor([u]).double()
    k = sample_poisson(m, v).double()
    assert float(torch.special.gammaincc(k + 1, m)) > u * (1 - 1e-9) or float(k) > mean + 12 * mean**0.5
    assert float(k) == 0 or float(torch.special.gammaincc(k, m)) <= u * (1 + 1e-9)


def test_poisson_numbers_have_their_mean_and_variance() -> None:
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mean in (0.0, 0.3, 4.0, 300.0):
        found = sample_poisson(torch.full_like(u, mean), u).double()
        assert abs(float(found.mean()) - mean) <= 6 * (mean / 50_000) ** 0.5
        assert abs(float(found.var()) - mean) <= 0.05 * mean


def test_impossible_poisson_means() -> None:
    for mean in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="mean: expected finite values of at least 0"):
            sample_poisson(torch.tensor([mean]).double(), torch.tensor([0.5]).double())
