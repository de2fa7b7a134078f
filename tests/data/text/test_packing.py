"""Documents to sequences."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from di4c_lm.data.text import packing
from di4c_lm.data.text.packing import encode_documents, pack, split_document
from di4c_lm.data.text.settings import DataConfig
from di4c_lm.data.text.tokenizers import load_tokenizer

TEXTS = [f"Statement number {n} is here,  with\n\ta twice spaced line: x_{n} = {n * n}." for n in range(50)]
RUNS = st.lists(st.lists(st.integers(0, 999), max_size=30), max_size=8)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> transformers.PreTrainedTokenizerFast:
    return load_tokenizer(DataConfig(vocab_size=400), TEXTS, tmp_path_factory.mktemp("cache"))


def runs_of(lists: list[list[int]]) -> Iterator[np.ndarray]:
    return (np.array(part, dtype=np.uint16) for part in lists)


@given(RUNS, st.integers(2, 12))
def test_packing_keeps_every_token_but_the_last_partial_sequence(lists: list[list[int]], length: int) -> None:
    line = [token for part in lists for token in part]
    packed = pack(runs_of(lists), length).tolist()
    assert [token for row in packed for token in row] == line[: len(line) // length * length]
    assert all(len(row) == length for row in packed)


@given(RUNS, st.integers(3, 12))
def test_a_frame_stands_around_each_sequence(lists: list[list[int]], length: int) -> None:
    framed = pack(runs_of(lists), length, frame=(1000, 1001)).tolist()
    plain = pack(runs_of(lists), length - 2).tolist()
    assert framed == [[1000, *row, 1001] for row in plain]


def test_what_is_dropped_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="di4c_lm"):
        assert pack(runs_of([[1, 2, 3, 4, 5, 6, 7, 8]]), 3).shape == (2, 3)
    assert "2 tokens at the end" in caplog.text


def test_no_room_within_a_frame_is_an_error() -> None:
    with pytest.raises(ValueError, match="data.length must be at least 3 where data.wrap=true, got 2"):
        pack(runs_of([[1]]), 2, frame=(0, 0))


@given(st.text(alphabet=" \nab", max_size=200), st.integers(2, 20))
def test_pieces_make_the_document_and_are_small(text: str, limit: int) -> None:
    pieces = list(split_document(text, limit))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= limit


@given(st.lists(st.text(alphabet="abz.1'é\n\t ", min_size=1, max_size=5), min_size=8, max_size=40))
def test_a_cut_before_white_space_does_not_change_the_tokens(
    tokenizer: transformers.PreTrainedTokenizerFast, words: list[str]
) -> None:
    """Words of at most 5 characters and a limit of 24: a place to cut is always there unless white space piles up."""
    text = " ".join(words)
    pieces = list(split_document(text, 24))
    if all(piece[0].isspace() and not before[-1].isspace() for before, piece in zip(pieces, pieces[1:], strict=False)):
        encode = tokenizer.backend_tokenizer.encode
        assert [token for piece in pieces for token in encode(piece).ids] == encode(text).ids


def test_documents_are_joined_by_eos(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    line = np.concatenate(list(encode_documents(TEXTS, tokenizer)))
    ends = np.flatnonzero(line == tokenizer.eos_token_id)
    parts = np.split(line, ends + 1)
    assert [tokenizer.decode(part[:-1]) for part in parts[:-1]] == TEXTS
    assert len(parts[-1]) == 0


def test_batches_and_pieces_do_not_change_the_tokens(
    tokenizer: transformers.PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.concatenate(list(encode_documents(TEXTS, tokenizer)))
    monkeypatch.setattr(packing, "BATCH_CHARACTERS", 100)
    monkeypatch.setattr(packing, "PIECE_CHARACTERS", 40)
    runs = list(encode_documents(TEXTS, tokenizer))
    assert len(runs) > 10
    assert np.array_equal(np.concatenate(runs), whole)


def test_the_name_of_a_special_token_is_plain_text(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    """A text about MASK must not hold the state MASK, nor a text about EOS end."""
    text = f"{tokenizer.mask_token} and {tokenizer.eos_token}"
    line = np.concatenate(list(encode_documents([text], tokenizer)))
    assert tokenizer.mask_token_id not in line
    assert (line == tokenizer.eos_token_id).sum() == 1
    assert tokenizer.decode(line[:-1]) == text
    assert tokenizer(str(tokenizer.mask_token))["input_ids"] == [tokenizer.mask_token_id]


def test_a_huge_document_comes_in_runs_of_bounded_size(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    text = "a word and another, " * 120_000  # 2.4 MB
    sizes = [len(run) for run in encode_documents([text], tokenizer)]
    assert max(sizes) <= packing.BATCH_CHARACTERS + packing.PIECE_CHARACTERS, "a token here is at least a character"
    assert len(sizes) >= 3


def test_no_document_gives_no_run(tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    assert list(encode_documents([], tokenizer)) == []


def test_truncation_set_on_the_tokenizer_does_not_shorten_the_corpus(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(DataConfig(vocab_size=400), TEXTS, tmp_path)
    tokenizer(TEXTS[0], truncation=True, max_length=4)
    line = np.concatenate(list(encode_documents(TEXTS[:1], tokenizer)))
    assert len(line) > 10
