"""The learning rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from di4c_lm.training.settings import OptimConfig


@given(
    st.integers(0, 50),
    st.integers(1, 200),
    st.sampled_from(["constant", "cosine"]),
)
def test_rises_to_lr_and_never_leaves_its_bounds(warmup, total, schedule):
    optim = OptimConfig(lr=0.3, warmup_steps=warmup, schedule=schedule)
    rates = [optim.learning_rate(step, total) for step in range(total)]
    rising, after = rates[:warmup], rates[warmup:]
    assert rising == pytest.approx([0.3 * (k + 1) / warmup for k in range(len(rising))])
    assert all(0.03 - 1e-12 <= rate <= 0.3 + 1e-12 for rate in after)
    assert all(a >= b - 1e-12 for a, b in zip(after, after[1:], strict=False))
    if schedule == "constant":
        assert set(after) <= {0.3}
    elif len(after) > 1:
        assert after[0] == pytest.approx(0.3) and after[-1] == pytest.approx(0.03)
