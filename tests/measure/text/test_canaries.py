"""Canaries are what they say; of the probe of rare tokens, exact sampling passes and the published float32 noise fails."""

import pytest
import torch

from di4c_lm.measure.text.canaries import periodic, shuffled, tail_probe, tiled
from tests.measure.models import text_model


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting_parallel", "left_to_right"])
def test_exact_sampling_passes(sampler: str) -> None:
    found = tail_probe(text_model(), steps=64, seed=0, settings={"sampler": sampler})
    assert 0.6 < found["tail_rate"] < 1.5 and found["tail_p"] > 1e-3


@pytest.mark.slow
def test_float32_noise_fails() -> None:
    found = tail_probe(text_model(), steps=64, seed=0, settings={"noise": "legacy_fp32"}, rare=1024, expected=30.0)
    assert found["tail_rate"] < 0.6 and found["tail_p"] < 1e-3


def test_a_periodic_text_has_the_frequent_tokens_in_turn_and_the_entropy_of_the_reference() -> None:
    reference = torch.tensor([[2, 2, 3, 3], [2, 3, 2, 3], [4, 4, 2, 2]])  # two tokens a text, as good as even
    found = periodic(reference, 5, seed=0)
    assert found.shape == (5, 4) and set(found.flatten().tolist()) == {2, 3}
    assert (found[:, 0] == found[:, 2]).all() and (found[:, 0] != found[:, 1]).all()


def test_the_tiled_text_is_the_first_and_shuffled_texts_keep_their_counts() -> None:
    real = torch.arange(12).view(2, 6)
    assert torch.equal(tiled(real, 3), real[:1].repeat(3, 1))
    found = shuffled(real, 4, seed=0)
    assert torch.equal(found.sort(1).values, real[torch.tensor([0, 1, 0, 1])])
    assert not torch.equal(found, real[torch.tensor([0, 1, 0, 1])])
