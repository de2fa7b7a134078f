import pytest
import torch

from di4c_lm.core.fingerprints import fingerprint
from di4c_lm.measure.text.encoding import documents, same_vocabulary
from tests.measure.tiny import letters, words

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
