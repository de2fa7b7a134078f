"""The probe of rare tokens: exact draws pass; the published float32 draws fail."""

import math

import pytest

from di4c_lm.measure.text.tail import _at_most, tail_probe
from tests.measure.models import tokenizer


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting_parallel"])
def test_exact_draws_pass(sampler: str) -> None:
    found = tail_probe(tokenizer(), steps=64, seed=0, settings={"sampler": sampler})
    assert 0.6 < found["tail_rate"] < 1.5 and found["tail_p"] > 1e-3


@pytest.mark.slow
def test_float32_noise_fails() -> None:
    found = tail_probe(tokenizer(), steps=64, seed=0, settings={"noise": "legacy_fp32"}, rare=1024, expected=30.0)
    assert found["tail_rate"] < 0.6 and found["tail_p"] < 1e-3


def test_the_tail_of_the_binomial() -> None:
    exact = sum(math.comb(30, k) * 0.2**k * 0.8 ** (30 - k) for k in range(4))
    assert _at_most(3, 30, 0.2) == pytest.approx(exact) and _at_most(30, 30, 0.2) == pytest.approx(1)
