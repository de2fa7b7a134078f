"""The probe of rare tokens: exact sampling passes; the published float32 noise fails."""

import pytest

from di4c_lm.measure.text.canaries import tail_probe
from tests.measure.models import text_model


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting_parallel"])
def test_exact_sampling_passes(sampler: str) -> None:
    found = tail_probe(text_model(), steps=64, seed=0, settings={"sampler": sampler})
    assert 0.6 < found["tail_rate"] < 1.5 and found["tail_p"] > 1e-3


@pytest.mark.slow
def test_float32_noise_fails() -> None:
    found = tail_probe(text_model(), steps=64, seed=0, settings={"noise": "legacy_fp32"}, rare=1024, expected=30.0)
    assert found["tail_rate"] < 0.6 and found["tail_p"] < 1e-3
