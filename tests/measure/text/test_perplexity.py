"""What an evaluator reads of samples, and the negative log-likelihood of it against the chain rule."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.measure.text.perplexity import (
    Document,
    context_limit,
    documents,
    same_vocabulary,
    score,
    scored_targets,
    token_weighted,
)
from tests.measure.tiny import VOCABULARY, gpt2, letters, words

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
    nll, tokens = score(EVALUATOR, [Document(ids=ids)], batch_size=1)
    assert tokens.tolist() == [len(ids) - 1]
    np.testing.assert_allclose(nll, [by_hand(ids)], rtol=1e-12)


@settings(max_examples=15, deadline=None)
@given(many=st.lists(IDS, min_size=1, max_size=7), batch_size=st.integers(1, 8))
def test_padding_and_batch_size_do_not_matter(many: list[tuple[int, ...]], batch_size: int) -> None:
    texts = [Document(ids=ids) for ids in many]
    nll, tokens = score(EVALUATOR, texts, batch_size=batch_size)
    alone = [score(EVALUATOR, [text], batch_size=1) for text in texts]
    np.testing.assert_allclose(nll, [one[0][0] for one in alone], rtol=1e-12)
    assert tokens.tolist() == [len(ids) - 1 for ids in many]


@settings(max_examples=15, deadline=None)
@given(ids=IDS, data=st.data())
def test_conditional_is_the_whole_less_its_prompt(ids: tuple[int, ...], data: st.DataObject) -> None:
    context = data.draw(st.integers(1, len(ids) - 1))
    nll, tokens = score(EVALUATOR, [Document(ids=ids, context=context)], batch_size=1)
    whole = score(EVALUATOR, [Document(ids=ids)], batch_size=1)[0][0]
    prompt = score(EVALUATOR, [Document(ids=ids[:context])], batch_size=1)[0][0] if context > 1 else 0.0
    np.testing.assert_allclose(nll, [whole - prompt], rtol=1e-9, atol=1e-9)
    assert tokens.tolist() == [len(ids) - context]


def test_a_uniform_evaluator_has_the_perplexity_of_its_vocabulary() -> None:
    nll, tokens = score(
        gpt2(scale=0.0), [Document(ids=(1, 2, 3)), Document(ids=(4, 5, 6, 7, 8), context=2)], batch_size=2
    )
    assert token_weighted(nll, tokens) == pytest.approx(VOCABULARY)


def test_weightings_differ_as_defined() -> None:
    nll, tokens = np.array([2.0, 30.0]), np.array([2, 10])
    assert token_weighted(nll, tokens) == pytest.approx(math.exp(32 / 12))
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
    nll, tokens = score(EVALUATOR, [Document(ids=ids)], batch_size=1, eos="first", eos_id=0)
    np.testing.assert_allclose(nll, [by_hand(ids[:2])], rtol=1e-12)
    assert tokens.tolist() == [1]


def test_half_precision_logits_are_summed_in_double() -> None:
    evaluator = gpt2().bfloat16()
    assert score(evaluator, [Document(ids=(1, 2, 3, 4))], batch_size=1)[0].dtype == np.float64


@pytest.mark.parametrize(
    "read, message",
    [
        ([], "0 documents"),
        ([Document(ids=(1, 2)), Document(ids=(1,))], "document 1 has 1 tokens .* nothing is left"),
        ([Document(ids=(1, 2, 3), context=3)], "document 0 has 3 tokens .* 3 of them context"),
        ([Document(ids=(1, 2), context=0)], "context of 0"),
        ([Document(ids=tuple([1] * 17))], "17 tokens under the evaluator, which reads at most 16"),
        ([Document(ids=(1, VOCABULARY))], "token id 11, the evaluator knows 0 to 10"),
    ],
)
def test_named_errors(read: list[Document], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(EVALUATOR, read, batch_size=2)


def test_context_limit_is_read_from_the_config() -> None:
    assert context_limit(gpt2(context=12)) == 12


MODEL = words("aa", "ab", "ca")  # <eos> 0, <unk> 1, aa 2, ab 3, ca 4, <mask> 5
LETTERS = letters()  # <end> 0, a 1, b 2, c 3, space 4


def test_equal_vocabularies_hand_over_ids() -> None:
    evaluator = words("aa", "ab", "ca", mask=False)
    assert same_vocabulary(MODEL, evaluator) and not same_vocabulary(MODEL, LETTERS)
    found = documents(torch.tensor([[0, 2, 3, 0]]), tokenizer=MODEL, evaluator_tokenizer=evaluator, context=2)
    assert [(d.ids, d.context) for d in found] == [((0, 2, 3, 0), 2)]


def test_another_tokenizer_reads_the_text_and_its_own_eos() -> None:
    found = documents(torch.tensor([[0, 2, 3, 0, 4]]), tokenizer=MODEL, evaluator_tokenizer=LETTERS)
    assert found[0].ids == (0, 1, 1, 4, 1, 2, 0, 3, 1)  # <end> "aa ab" <end> "ca"
    assert found[0].context == 1


def test_the_border_of_prompt_and_continuation_stays() -> None:
    found = documents(torch.tensor([[2, 3, 4, 4]]), tokenizer=MODEL, evaluator_tokenizer=LETTERS, context=1)
    assert found[0].context == 2  # "aa"
    assert found[0].ids[2:] == (1, 2, 4, 3, 1, 4, 3, 1)  # "ab ca ca"


def test_a_evaluator_with_its_own_bos_gets_it() -> None:
    evaluator = words("aa", "ab", "ca", "zz", mask=False, bos=True)
    found = documents(torch.tensor([[2, 3]]), tokenizer=MODEL, evaluator_tokenizer=evaluator)
    assert (found[0].ids, found[0].context) == ((evaluator.bos_token_id, 2, 3), 1)


def test_always_goes_through_text_where_it_need_not() -> None:
    tokenizer = words("a", "##b", "ab")
    tokens = torch.tensor([[2, 3]])  # reads "ab", which has a token of its own
    assert documents(tokens, tokenizer=tokenizer, evaluator_tokenizer=tokenizer)[0].ids == (2, 3)
    assert documents(tokens, tokenizer=tokenizer, evaluator_tokenizer=tokenizer, retokenize="always")[0].ids == (4,)


def test_truncation_is_asked_for() -> None:
    tokens = torch.tensor([[2, 3, 4, 2]])
    assert len(documents(tokens, tokenizer=MODEL, evaluator_tokenizer=LETTERS)[0].ids) == 11
    assert len(documents(tokens, tokenizer=MODEL, evaluator_tokenizer=LETTERS, limit=6)[0].ids) == 6


def test_an_unfinished_sample_is_refused() -> None:
    tokens = torch.tensor([[2, 3, 4], [2, 5, 5]])
    with pytest.raises(ValueError, match="sample 1 still holds 2 MASK tokens of 3"):
        documents(tokens, tokenizer=MODEL, evaluator_tokenizer=LETTERS)


def test_a_prompt_may_not_fill_the_sample() -> None:
    with pytest.raises(ValueError, match="a prompt of 3 tokens leaves nothing of samples of 3"):
        documents(torch.tensor([[2, 3, 4]]), tokenizer=MODEL, evaluator_tokenizer=LETTERS, context=3)


def test_fingerprints_tell_tokenizers_apart() -> None:
    assert fingerprint(MODEL) == fingerprint(words("aa", "ab", "ca"))
    assert fingerprint(MODEL) != fingerprint(words("aa", "ca", "ab"))
