"""n-gram models against sums over every sequence, their definition, and their own samples."""

import itertools

import numpy as np
import pytest
import torch

from di4c_lm.measure.text.counting import NgramModel, bigram_sampler, ngram_sampler, ngrams, perplexity
from di4c_lm.mixtures.class_counts import pair_log_ratios
from tests.measure.models import CODES, text_model

TEXT = np.random.default_rng(0).choice(4, p=[0.5, 0.3, 0.15, 0.05], size=(60, 4))
TEXT[:, 1] = np.where(TEXT[:, 0] == 0, TEXT[:, 1], TEXT[:, 0])
EVERY = np.array(list(itertools.product(range(4), repeat=4)))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_every_sequence_sum_to_one(order: int) -> None:
    assert np.exp(NgramModel(TEXT, 4, order).log_prob(EVERY)).sum() == pytest.approx(1, abs=1e-9)


def plain(order: int, context: tuple[int, ...], token: int) -> float:
    """p(token | context) as the definition says it, by dictionaries; 4 stands before a sequence."""
    padded = [(4,) * (order - 1) + tuple(row) for row in TEXT.tolist()]
    grams = [tuple(row[end - order : end]) for row in padded for end in range(order, len(row) + 1)]

    def counts(length: int) -> dict[tuple[int, ...], int]:
        if length == order:
            return {gram: grams.count(gram) for gram in set(grams)}
        longer = {gram[-length - 1 :] for gram in grams}
        return {gram[-length:]: sum(one[1:] == gram[-length:] for one in longer) for gram in grams}

    def p(length: int) -> float:
        if length == 0:
            return 1 / 4
        count, before = counts(length), context[len(context) - length + 1 :]
        once, twice = (sum(value == number for value in count.values()) for number in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.0
        behind = {gram: value for gram, value in count.items() if gram[:-1] == before}
        total = sum(behind.values())
        if not total:
            return p(length - 1)
        return max(behind.get((*before, token), 0) - discount, 0) / total + discount * len(behind) / total * p(
            length - 1
        )

    return p(order)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_is_interpolated_kneser_ney(order: int) -> None:
    model = NgramModel(TEXT, 4, order)
    for row in EVERY[::37]:
        padded = (4,) * (order - 1) + tuple(int(token) for token in row)
        by_hand = sum(np.log(plain(order, padded[at : at + order - 1], padded[at + order - 1])) for at in range(4))
        assert model.log_prob(row[None])[0] == pytest.approx(by_hand, rel=1e-9)


def test_its_samples_are_of_its_distribution() -> None:
    model, count = NgramModel(TEXT, 4, 3), 40_000
    samples = model.sample(count, 4, seed=1)
    p, seen = np.exp(model.log_prob(EVERY)), np.bincount(samples @ (64, 16, 4, 1), minlength=256)
    variation = 0.5 * np.abs(seen / count - p).sum()
    exact = np.random.default_rng(0).multinomial(count, p, size=200)
    assert variation < np.quantile(0.5 * np.abs(exact / count - p).sum(1), 0.999)
    assert np.array_equal(samples, model.sample(count, 4, seed=1))
    assert not np.array_equal(samples, model.sample(count, 4, seed=2))


def test_a_longer_context_says_more_of_text_with_a_memory() -> None:
    text = np.random.default_rng(1).integers(4, size=(3000, 6))
    text[:, 2:] = (text[:, :2].sum(1, keepdims=True) + np.arange(4)) % 4  # two tokens tell the rest
    found = ngrams(torch.from_numpy(text[:2000]), 4)
    assert list(found) == ["ngram_2", "ngram_3", "ngram_5"]
    alone, two, three = (
        perplexity(one, torch.from_numpy(text[2000:]))
        for one in (NgramModel(text[:2000], 4, 1), *list(found.values())[:2])
    )
    assert three < two - 0.1 < alone - 0.2 < 4


def test_it_samples_as_models_do() -> None:
    sampler = ngram_sampler(NgramModel(TEXT, 4, 2), 4)
    tokens, nfe = sampler(7, 3, 0)
    assert tokens.shape == (7, 4) and nfe == 0.0


@pytest.mark.parametrize("order", [1, 3])
def test_it_continues_prompts_by_its_distribution(order: int) -> None:
    model, count = NgramModel(TEXT, 4, order), 40_000
    prompt = torch.tensor([[0, 1]]).expand(count, -1)
    tokens, _ = ngram_sampler(model, 4)(prompt, 1, 0)
    assert torch.equal(tokens[:, :2], prompt)
    every = EVERY[(EVERY[:, :2] == [0, 1]).all(1)]
    p = np.exp(model.log_prob(every))
    often = np.bincount(tokens[:, 2] * 4 + tokens[:, 3], minlength=16) / count
    assert np.abs(often - p / p.sum()).max() < 0.012


def test_bigrams_over_a_teachers_marginals() -> None:
    """One call's samples are of Π_d p^d(x^d) r(x^{d-1}, x^d), each factor normalised given the token to its left."""
    teacher, text, count = text_model(length=3, scale=0.3), torch.from_numpy(TEXT[:, :3]), 40_000
    sampler = bigram_sampler(teacher, text, 4096, {})
    assert sampler is not None
    tokens, nfe = sampler(count, 1, 0)
    assert nfe == 1
    p_DS = teacher.logits(torch.full((1, 3), 4))[0, :, :4].double().exp()
    ratio_SS = pair_log_ratios(text, 5)[:4, :4].double().exp()
    every = torch.cartesian_prod(*[torch.arange(4)] * 3)
    p_N = p_DS[0, every[:, 0]]
    for d in (1, 2):
        tied_SS = p_DS[d] * ratio_SS
        p_N = p_N * (tied_SS / tied_SS.sum(1, keepdim=True))[every[:, d - 1], every[:, d]]
    seen_N = torch.bincount(tokens @ torch.tensor([16, 4, 1]), minlength=64).double() / count
    exact = np.random.default_rng(0).multinomial(count, (p_N / p_N.sum()).numpy(), size=200) / count
    variations = 0.5 * np.abs(exact - p_N.numpy()).sum(1)
    assert float(0.5 * (seen_N - p_N).abs().sum()) < np.quantile(variations, 0.999)


def test_bigrams_tie_only_what_is_sampled_together_and_leave_the_teacher_as_it_is() -> None:
    teacher, text = text_model(length=3, scale=0.1), torch.tensor([[0, 1, 2]] * 500 + [[3, 0, 3]] * 500)
    before = teacher.sample_tokens(200, 1, seed=0)[0]
    sampler = bigram_sampler(teacher, text, 64, {})
    assert sampler is not None
    given = torch.tensor([[0, 1]] * 200)  # one position is left: nothing to tie
    alone = torch.full((200, 3), 4)
    alone[:, :2] = given
    assert torch.equal(sampler(given, 1, 0)[0], teacher.sample_tokens(200, 1, seed=0, x_init=alone)[0])
    assert torch.equal(before, teacher.sample_tokens(200, 1, seed=0)[0])
    assert bigram_sampler(text_model(codes=CODES), text, 64, {}) is None


@pytest.mark.parametrize("order, tokens", [(0, TEXT), (2, TEXT[:0])])
def test_bad_input_is_named(order: int, tokens: np.ndarray) -> None:
    with pytest.raises(ValueError, match="order must be at least 1 and tokens some"):
        NgramModel(tokens, 4, order)
