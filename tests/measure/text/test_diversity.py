import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.measure.text.diversity import (
    Windows,
    corpus_entropy,
    distinct_n,
    near_duplicates,
    repetition,
    sample_entropy,
    self_bleu,
)

SAMPLES = st.lists(st.lists(st.integers(0, 5), min_size=6, max_size=6), min_size=1, max_size=4).map(torch.tensor)


def test_constant_is_zero_and_all_distinct_is_log_length() -> None:
    tokens = torch.stack([torch.full((9,), 4), torch.arange(9) + 100])
    found = sample_entropy(tokens)
    assert found[0] == 0
    assert float(found[1]) == pytest.approx(math.log(9), rel=1e-14)


def test_by_hand() -> None:
    expected = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25))
    assert sample_entropy(torch.tensor([[7, 2, 7, 5]])).tolist() == pytest.approx([expected])


@settings(max_examples=40, deadline=None)
@given(tokens=SAMPLES, seed=st.integers(0, 99))
def test_order_and_names_of_tokens_do_not_matter(tokens: torch.Tensor, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    order, names = torch.randperm(6, generator=rng), torch.randperm(6, generator=rng)
    torch.testing.assert_close(sample_entropy(names[tokens[:, order]]), sample_entropy(tokens))


@settings(max_examples=40, deadline=None)
@given(tokens=SAMPLES)
def test_corpus_entropy_is_at_least_the_mean_within_samples(tokens: torch.Tensor) -> None:
    assert corpus_entropy(tokens) >= float(sample_entropy(tokens).mean()) - 1e-12  # entropy is concave
    assert corpus_entropy(tokens) <= math.log(6) + 1e-12


@settings(max_examples=40, deadline=None)
@given(tokens=SAMPLES, n=st.integers(1, 6))
def test_distinct_n_counts_sets_of_tuples(tokens: torch.Tensor, n: int) -> None:
    grams = [tuple(row[i : i + n]) for row in tokens.tolist() for i in range(6 - n + 1)]
    assert distinct_n(tokens, n) == pytest.approx(len(set(grams)) / len(grams))


def test_a_tiled_sample_is_seen_across_samples_only() -> None:
    varied = torch.arange(32).reshape(4, 8)
    tiled = varied[:1].expand(4, 8)
    torch.testing.assert_close(sample_entropy(tiled), sample_entropy(varied))
    assert corpus_entropy(tiled) < corpus_entropy(varied)
    assert distinct_n(tiled, 2) == pytest.approx(distinct_n(varied, 2) / 4)


def test_named_errors() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 0\)"):
        sample_entropy(torch.zeros(2, 0, dtype=torch.long))
    with pytest.raises(ValueError, match="n must be 1 to the length.*got 4"):
        distinct_n(torch.zeros(2, 3, dtype=torch.long), 4)


def test_repetition_is_the_share_of_seen_n_grams() -> None:
    tokens = torch.tensor([[1, 2, 1, 2, 1, 2], [1, 2, 3, 4, 5, 6]])
    assert repetition(tokens, 2).tolist() == pytest.approx([3 / 5, 0])
    with pytest.raises(ValueError, match="n must be 1 to the length.*got 7"):
        repetition(tokens, 7)


def test_near_duplicates_are_found_past_a_shift_and_unlike_samples_are_not() -> None:
    rng = torch.Generator().manual_seed(0)
    own = torch.randint(1000, (6, 40), generator=rng)
    shifted = torch.cat([own[0, 10:], torch.randint(1000, (10,), generator=rng)])[None]
    found = near_duplicates(torch.cat([own, shifted]))
    assert found.tolist() == [True, False, False, False, False, False, True]
    assert near_duplicates(own[:1].repeat(5, 1)).all()


UNLIKE = ["the cat sat on the mat today", "seven old ships left port at dawn", "we boil rice with salt and leaves"]


def test_copies_score_100_and_unlike_texts_little() -> None:
    assert self_bleu([UNLIKE[0]] * 3) == pytest.approx([100.0] * 3)
    assert self_bleu(UNLIKE).max() < 15


def test_characters_and_a_shared_prompt_lift_the_published_form() -> None:
    prompt = "once upon a time in a land far away there was a king who had three sons and "
    prompted = [prompt + text for text in UNLIKE]
    plain, with_prompt = self_bleu(UNLIKE, legacy=True), self_bleu(prompted, legacy=True)
    assert plain.mean() > self_bleu(UNLIKE).mean() + 5
    assert with_prompt.mean() > plain.mean() + 30


def test_an_empty_sample_and_a_single_one_are_named() -> None:
    with pytest.raises(ValueError, match="sample 1 is empty"):
        self_bleu(["a word", "  "])
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        self_bleu(["a word"])


def test_windows_that_stand_in_the_training_text_are_counted() -> None:
    training = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]])
    samples = torch.tensor([[1, 2, 3, 4, 5], [9, 9, 9, 9, 9], [5, 6, 7, 8, 9]])
    windows = Windows.of(training, 3)
    assert windows.copied(samples).tolist() == pytest.approx([2 / 3, 0, 1])
    assert Windows.of(training, 8).copied(samples).tolist() == [0, 0, 1]  # of short sequences whole ones
    with pytest.raises(ValueError, match="at least 3 tokens, got 2"):
        windows.copied(samples[:, :2])
