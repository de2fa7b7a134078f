"""The split by document."""

import hashlib
import os
import subprocess
import sys

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from di4c_lm.data.text.documents import (
    Documents,
    Split,
    builtin_corpus,
    builtin_documents,
    document_hash,
    first_characters,
)

TEXTS = st.lists(st.text(min_size=1), min_size=2, max_size=20).filter(lambda texts: len(set(texts)) > 1)


def corpus(texts: list[str]) -> Documents:
    return Documents("some texts", lambda: iter(texts))


@given(TEXTS, st.floats(0.001, 0.999))
def test_both_sides_have_documents_and_none_is_on_both(texts: list[str], share: float) -> None:
    documents = corpus(texts)
    split = Split.fitted(documents, share)
    train, held_out = (list(filter(side, documents.read())) for side in (split.trains, split.holds_out))
    assert train and held_out
    assert sorted(train + held_out) == sorted(texts)
    assert not set(train) & set(held_out)


@given(TEXTS.filter(lambda texts: len(set(texts)) > 2), st.floats(0.001, 0.5), st.floats(0.001, 0.999))
def test_the_evaluator_s_documents_are_nobody_else_s(texts: list[str], share: float, evaluator_share: float) -> None:
    documents = corpus(texts)
    plain = Split.fitted(documents, share)
    assume(len(set(filter(plain.trains, texts))) > 1)
    split = Split.fitted(documents, share, evaluator_share)
    sides = [list(filter(side, texts)) for side in (split.trains, split.holds_out, split.evaluates)]
    assert all(sides)
    assert sorted(text for side in sides for text in side) == sorted(texts)
    assert sides[1] == list(filter(plain.holds_out, texts))
    assert set(sides[0]) <= set(filter(plain.trains, texts)) and not set(sides[0]) & set(sides[2])


def test_the_evaluator_s_share_is_kept() -> None:
    """4,000 of 20,000 expected, standard deviation 57."""
    texts = [f"document {n}" for n in range(20_000)]
    split = Split.fitted(corpus(texts), 0.05, 0.2)
    num = sum(not split.trains(text) and not split.holds_out(text) for text in texts)
    assert num == sum(map(split.evaluates, texts)) and abs(num - 4000) < 300


@given(TEXTS)
def test_the_side_of_a_document_does_not_depend_on_the_others(texts: list[str]) -> None:
    split = Split.by_share(0.5)
    alone = [text for text in texts if split.holds_out(text)]
    assert list(filter(split.holds_out, texts[::-1])) == alone[::-1]


def test_the_share_is_kept() -> None:
    """1,000 of 20,000 expected, standard deviation 31."""
    split = Split.by_share(0.05)
    assert abs(sum(split.holds_out(f"document {n}") for n in range(20_000)) - 1000) < 150


def test_the_hash_is_frozen() -> None:
    """Another hash would leak held-out documents of earlier runs into training."""
    assert document_hash("di4c") == 14948494547401903646


@pytest.mark.parametrize("texts, found", [([], "empty"), (["one"], "one distinct"), (["one", "one"], "one distinct")])
def test_too_few_documents_are_an_error(texts: list[str], found: str) -> None:
    with pytest.raises(ValueError, match=f"some texts.*{found}"):
        Split.fitted(corpus(texts), 0.1)


def test_an_evaluator_s_document_takes_a_third() -> None:
    with pytest.raises(ValueError, match=r"some texts: 2 distinct .* are needed .*, or data\.evaluator_share=0"):
        Split.fitted(corpus(["one", "two", "one"]), 0.1, 0.2)


def test_first_characters_stops_reading() -> None:
    endless = iter(lambda: "abcd", None)
    assert list(first_characters(endless, 10)) == ["abcd"] * 3


HASH_ALL = (
    "import hashlib; from di4c_lm.data.text.documents import builtin_documents;"
    "print(hashlib.sha256('\\0'.join(builtin_documents()).encode()).hexdigest())"
)


def test_size_and_shape() -> None:
    documents = builtin_documents()
    assert 1_500_000 < sum(map(len, documents)) < 3_000_000
    assert len(documents) > 300
    assert len(set(documents)) == len(documents)
    assert min(map(len, documents)) >= 200
    assert tuple(builtin_corpus().read()) == documents


def test_it_is_english_prose_about_python() -> None:
    text = "\n".join(builtin_documents())
    assert text.count(" the ") > 10_000
    assert "assert statement" in text.lower()


def test_another_process_finds_the_same() -> None:
    here = hashlib.sha256("\0".join(builtin_documents()).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(
        [sys.executable, "-c", HASH_ALL], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here
