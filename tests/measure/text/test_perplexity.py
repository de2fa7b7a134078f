import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.measure.text.perplexity import (
    Document,
    context_limit,
    document_weighted,
    score,
    scored_targets,
    token_weighted,
)
from tests.measure.tiny import VOCABULARY, gpt2

EVALUATOR = gpt2()
IDS = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=16).map(tuple)


def by_hand(ids: tuple[int, ...], context: int = 1) -> float:
    """One prefix at a time: no batch, no padding, no shifted slices."""
    total = 0.0
    for end in range(context, len(ids)):
        with torch.no_grad():
            log_p = EVALUATOR(input_ids=torch.tensor([ids[:end]])).logits[0, -1].log_softmax(-1)
        total -= float(log_p[ids[end]])
    return total


@settings(max_examples=15, deadline=None)
@given(ids=IDS)
def test_score_is_the_chain_rule(ids: tuple[int, ...]) -> None:
    found = score(EVALUATOR, [Document(ids=ids)], batch_size=1)
    assert found.tokens.tolist() == [len(ids) - 1]
    np.testing.assert_allclose(found.nll, [by_hand(ids)], rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(documents=st.lists(IDS, min_size=1, max_size=7), batch_size=st.integers(1, 8))
def test_padding_and_batch_size_do_not_matter(documents: list[tuple[int, ...]], batch_size: int) -> None:
    texts = [Document(ids=ids) for ids in documents]
    together = score(EVALUATOR, texts, batch_size=batch_size)
    alone = [score(EVALUATOR, [text], batch_size=1) for text in texts]
    np.testing.assert_allclose(together.nll, [one.nll[0] for one in alone], rtol=1e-12)
    assert together.tokens.tolist() == [len(ids) - 1 for ids in documents]


@settings(max_examples=15, deadline=None)
@given(ids=IDS, data=st.data())
def test_conditional_is_the_whole_less_its_prompt(ids: tuple[int, ...], data: st.DataObject) -> None:
    context = data.draw(st.integers(1, len(ids) - 1))
    given_prompt = score(EVALUATOR, [Document(ids=ids, context=context)], batch_size=1)
    whole = score(EVALUATOR, [Document(ids=ids)], batch_size=1).nll[0]
    prompt = score(EVALUATOR, [Document(ids=ids[:context])], batch_size=1).nll[0] if context > 1 else 0.0
    np.testing.assert_allclose(given_prompt.nll, [whole - prompt], rtol=1e-9, atol=1e-9)
    assert given_prompt.tokens.tolist() == [len(ids) - context]


def test_a_uniform_evaluator_has_the_perplexity_of_its_vocabulary() -> None:
    found = score(gpt2(scale=0.0), [Document(ids=(1, 2, 3)), Document(ids=(4, 5, 6, 7, 8), context=2)], batch_size=2)
    assert token_weighted(found.nll, found.tokens) == pytest.approx(VOCABULARY)
    assert document_weighted(found.nll, found.tokens) == pytest.approx(VOCABULARY)


def test_weightings_differ_as_defined() -> None:
    nll, tokens = np.array([2.0, 30.0]), np.array([2, 10])
    assert token_weighted(nll, tokens) == pytest.approx(math.exp(32 / 12))
    assert document_weighted(nll, tokens) == pytest.approx(math.exp((1.0 + 3.0) / 2))
    stacked = token_weighted(np.stack([nll, 2 * nll]), np.stack([tokens, tokens]))
    np.testing.assert_allclose(stacked, np.exp([32 / 12, 64 / 12]))


def test_eos_rules() -> None:
    eos = 0
    wrapped = Document(ids=(eos, 5, 6, eos, 7, eos))
    assert scored_targets(wrapped, "all", eos).tolist() == [False, True, True, True, True, True]
    assert scored_targets(wrapped, "first", eos).tolist() == [False, True, True, True, False, False]
    assert scored_targets(wrapped, "mdlm", eos).tolist() == [False, True, True, False, True, False]
    plain = Document(ids=(5, 6, eos, 7, eos), context=2)
    assert scored_targets(plain, "mdlm", eos).tolist() == [False, False, True, True, False]
    assert scored_targets(plain, "first", None).tolist() == [False, False, True, True, True]


def test_eos_rule_reaches_the_score() -> None:
    ids = (3, 0, 4, 0)
    kept = score(EVALUATOR, [Document(ids=ids)], batch_size=1, eos="first", eos_id=0)
    np.testing.assert_allclose(kept.nll, [by_hand(ids[:2])], rtol=1e-12)
    assert kept.tokens.tolist() == [1]


def test_half_precision_logits_are_summed_in_double() -> None:
    evaluator = gpt2().bfloat16()
    assert score(evaluator, [Document(ids=(1, 2, 3, 4))], batch_size=1).nll.dtype == np.float64


@pytest.mark.parametrize(
    "documents, message",
    [
        ([], "0 documents"),
        ([Document(ids=(1, 2)), Document(ids=(1,))], "document 1 has 1 tokens .* nothing is left"),
        ([Document(ids=(1, 2, 3), context=3)], "document 0 has 3 tokens .* 3 of them context"),
        ([Document(ids=(1, 2), context=0)], "context of 0"),
        ([Document(ids=tuple([1] * 17))], "17 tokens under the evaluator, which reads at most 16"),
        ([Document(ids=(1, VOCABULARY))], "token id 11, the evaluator knows 0 to 10"),
    ],
)
def test_named_errors(documents: list[Document], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(EVALUATOR, documents, batch_size=2)


def test_context_limit_is_read_from_the_config() -> None:
    assert context_limit(gpt2(context=12)) == 12
