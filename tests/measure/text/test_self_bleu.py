"""Self-BLEU over words, and the published form over characters."""

import pytest

from di4c_lm.measure.text.self_bleu import self_bleu

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
