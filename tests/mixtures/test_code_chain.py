import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from di4c_lm.mixtures.code_chain import CodeChain


def chain(num_batch: int = 2, num_windows: int = 3, num_codes: int = 3, *, seed: int = 0, window: int = 2) -> CodeChain:
    rng = torch.Generator().manual_seed(seed)
    score = torch.randn(num_batch, num_windows, num_codes, num_codes, generator=rng, dtype=torch.float64) * 2
    score[:, 0] = score[:, 0, :1]
    return CodeChain(score.log_softmax(3), window)


def strings(found: CodeChain) -> tuple[Tensor, Tensor]:
    """All strings of codes (K, W), and log p of each by the definition (B, K)."""
    num_batch, num_windows, num_codes, _ = found.log_step.shape
    code_KW = torch.tensor(list(itertools.product(range(num_codes), repeat=num_windows)))
    log_p_BK = torch.zeros(num_batch, len(code_KW), dtype=torch.float64)
    before_K = torch.zeros(len(code_KW), dtype=torch.int64)
    for w, code_K in enumerate(code_KW.unbind(1)):
        log_p_BK += found.log_step[:, w, before_K, code_K]
        before_K = code_K
    return code_KW, log_p_BK


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
def test_likelihood_and_marginals_are_sums_over_all_strings(num_windows: int, num_codes: int, seed: int) -> None:
    found = chain(2, num_windows, num_codes, seed=seed)
    code_KW, log_p_BK = strings(found)
    torch.testing.assert_close(log_p_BK.logsumexp(1), torch.zeros(2, dtype=torch.float64))
    emission = torch.randn(2, num_windows, 4, num_codes, generator=torch.Generator().manual_seed(seed)).double() * 30
    along_BKTW = emission[:, torch.arange(num_windows), :, code_KW].permute(2, 0, 3, 1)
    expected = (log_p_BK[..., None] + along_BKTW.sum(3)).logsumexp(1)
    torch.testing.assert_close(found.log_prob(emission), expected)
    for w, j in itertools.product(range(num_windows), range(num_codes)):
        marginal_B = log_p_BK[:, code_KW[:, w] == j].logsumexp(1)
        torch.testing.assert_close(found.log_marginal[:, w, j], marginal_B)


def test_gradient_of_the_likelihood() -> None:
    score = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    emission = torch.randn(1, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def log_prob(score: Tensor, emission: Tensor) -> Tensor:
        return CodeChain(score.log_softmax(3), 1).log_prob(emission)

    assert torch.autograd.gradcheck(log_prob, (score, emission))


def test_one_window_is_a_mixture() -> None:
    found = chain(1, 1, 4)
    emission = torch.randn(1, 1, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (found.log_step[0, 0, 0] + emission[0, 0]).logsumexp(1)
    torch.testing.assert_close(found.log_prob(emission)[0], expected)


def test_drawn_strings_have_the_chain_s_law() -> None:
    found = chain(1, 3, 3, seed=3)
    code_KW, log_p_BK = strings(found)
    count = 40_000
    u = torch.rand(1, count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn_NW = found.sample(u)[0]
    place = torch.tensor([9, 3, 1])
    seen_K = (drawn_NW * place).sum(1).bincount(minlength=27).double()
    expected_K = count * log_p_BK[0].exp()
    assert torch.equal((code_KW * place).sum(1), torch.arange(27))
    assert float(((seen_K - expected_K) ** 2 / expected_K).sum()) < 60  # 26 degrees of freedom


def test_a_draw_is_of_its_own_sequence() -> None:
    found = chain(3)
    u = torch.rand(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alone = found.rows(torch.tensor([2])).sample(u[2:])
    assert torch.equal(found.sample(u)[2:], alone)


def test_positions_fall_into_windows() -> None:
    assert chain(window=2).window_of(torch.arange(5)).tolist() == [0, 0, 1, 1, 2]


def test_impossible_observations_stay_finite() -> None:
    """Emissions far apart, as an impossible token makes them, lose no other path and yield no NaN."""
    found = chain(1, 4, 3)
    emission = torch.zeros(1, 4, 1, 3, dtype=torch.float64)
    emission[0, 2, 0, :2] = -1e6
    value = found.log_prob(emission.requires_grad_())
    value.sum().backward()
    assert emission.grad is not None and bool(emission.grad.isfinite().all())
    log_marginal = found.log_marginal[0, 2, 2]
    assert float(value.detach()) == pytest.approx(float(log_marginal), abs=1e-9)
    assert math.isfinite(float(value.detach()))
