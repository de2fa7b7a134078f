"""A BPE cut down to what a corpus uses."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from di4c_lm.data.text.builtin import builtin_corpus
from di4c_lm.data.text.restricted import restrict
from di4c_lm.data.text.tokenizers import load_tokenizer
from di4c_lm.domains.text.settings import DataConfig
from tests.tools.helpers import run_tool


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    texts = list(builtin_corpus().read())[:200]
    return load_tokenizer(DataConfig(vocab_size=2000), texts, tmp_path_factory.mktemp("cache"))


TEXTS = ["The assert statement, twice  spaced.", "a = b[3] + 10\n\tnext line", "for item in sequence: pass"]


def ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_corpus_is_cut_into_the_same_pieces(whole: Any) -> None:
    small = restrict(whole, TEXTS)
    assert len(small) < len(whole) / 4
    for text in TEXTS:
        assert small.convert_ids_to_tokens(ids(small, text)) == whole.convert_ids_to_tokens(ids(whole, text))
    numbers = sorted(small.get_vocab().values())
    assert numbers == list(range(len(small)))
    assert small.eos_token == whole.eos_token and small.mask_token_id == len(small) - 1


@settings(max_examples=30, deadline=None)
@given(text=st.text(max_size=30))
def test_any_other_text_comes_back(whole: Any, text: str) -> None:
    small = restrict(whole, TEXTS)
    assert small.decode(ids(small, text)) == whole.decode(ids(whole, text))


def test_what_cannot_be_cut_down_is_refused(whole: Any) -> None:
    with pytest.raises(ValueError, match="there is no token in the texts"):
        restrict(whole, [])


@pytest.mark.skipif("DI4C_SHARED" not in os.environ, reason="no DI4C_SHARED: GPT-2's BPE and TinyStories are elsewhere")
def test_gpt2_on_real_stories_by_the_command(tmp_path: Path) -> None:
    data = Path(os.environ["DI4C_SHARED"]) / "data"
    stories = tmp_path / "stories.jsonl"
    with (data / "tinystories" / "part_a.jsonl").open(encoding="utf-8") as lines:
        stories.write_text("".join(next(lines) for _ in range(50)), encoding="utf-8")
    words = [f"tokenizer={data / 'gpt2'}", f"path={stories}", f"out={tmp_path / 'small'}"]
    done = run_tool("restrict_tokenizer", *words)
    assert done.returncode == 0, done.stderr
    small = load_tokenizer(DataConfig(tokenizer=str(tmp_path / "small")), (), tmp_path)
    large = load_tokenizer(DataConfig(tokenizer=str(data / "gpt2")), (), tmp_path)
    assert f"{len(small)} of {len(large)} entries" in done.stdout and len(small) < 4000
    text = stories.read_text(encoding="utf-8").splitlines()[0][10:400]
    assert small.decode(ids(small, text)) == text


def test_bad_words_end_with_status_2(tmp_path: Path) -> None:
    done = run_tool("restrict_tokenizer", "path=x.jsonl")
    assert done.returncode == 2 and "out must be a folder to write to" in done.stderr
