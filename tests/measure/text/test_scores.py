"""Scores of documents are kept: read once, whatever is read beside them."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from di4c_lm.measure.text import samples as samples_module
from di4c_lm.measure.text.evaluator import Evaluator, load_evaluator
from di4c_lm.measure.text.perplexity import Document
from di4c_lm.measure.text.samples import Reader, Reading
from tests.measure.tiny import gpt2, words

TOKENIZER = words("a", "b", "c", "d")
DOCUMENTS = [Document(ids=(2, 3, 4, 5)), Document(ids=(5, 4, 3)), Document(ids=(2, 2, 2, 2, 3))]


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    folder = tmp_path_factory.mktemp("evaluator")
    model: Any = gpt2(vocabulary=len(TOKENIZER))
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return load_evaluator(str(folder))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of documents of each call of the evaluator."""
    counts: list[int] = []

    def score(evaluator: Any, documents: Any, **how: Any) -> Any:
        counts.append(len(documents))
        return real(evaluator, documents, **how)

    real = samples_module.score
    monkeypatch.setattr(samples_module, "score", score)
    return counts


def reader(evaluator: Evaluator, cache: Path | None, **settings: Any) -> Reader:
    how = Reading(evaluator_batch_size=2, **settings)
    return Reader(tokenizer=TOKENIZER, evaluators=(evaluator,), settings=how, progress=False, cache=cache)


def test_a_document_is_scored_once(evaluator: Evaluator, scored: list[int], tmp_path: Path) -> None:
    plain = reader(evaluator, None).nll(evaluator, DOCUMENTS, "")
    first = reader(evaluator, tmp_path).nll(evaluator, DOCUMENTS[:2], "")
    more = reader(evaluator, tmp_path).nll(evaluator, DOCUMENTS[::-1], "")
    again = reader(evaluator, tmp_path).nll(evaluator, DOCUMENTS, "")
    assert scored == [3, 2, 1]
    for which in (0, 1):
        np.testing.assert_allclose(more[which][::-1], plain[which], rtol=1e-6)
        np.testing.assert_array_equal(again[which][:2], first[which])


def test_what_shapes_a_score_is_part_of_its_key(evaluator: Evaluator, scored: list[int], tmp_path: Path) -> None:
    reader(evaluator, tmp_path).nll(evaluator, DOCUMENTS, "")
    reader(evaluator, tmp_path, eos="first").nll(evaluator, DOCUMENTS, "")
    later = [dataclasses.replace(one, context=2) for one in DOCUMENTS]
    reader(evaluator, tmp_path).nll(evaluator, later, "")
    other = dataclasses.replace(evaluator, model=gpt2(vocabulary=len(TOKENIZER), scale=0.0))
    other.__dict__["weights"] = "0" * 64
    reader(other, tmp_path).nll(other, DOCUMENTS, "")
    assert scored == [3, 3, 3, 3]


def test_an_interrupted_evaluation_keeps_its_batches(
    evaluator: Evaluator, scored: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def forward(*_: Any, **inputs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(**inputs)

    real = evaluator.model.forward
    with monkeypatch.context() as patch:
        patch.setattr(evaluator.model, "forward", forward)
        with pytest.raises(KeyboardInterrupt):
            reader(evaluator, tmp_path).nll(evaluator, DOCUMENTS, "")
    reader(evaluator, tmp_path).nll(evaluator, DOCUMENTS, "")
    assert scored == [3, 1]


def test_a_damaged_file_is_warned_of_and_not_used(
    evaluator: Evaluator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = reader(evaluator, tmp_path).nll(evaluator, DOCUMENTS, "")
    (file,) = (tmp_path / "scores").iterdir()
    file.write_bytes(b"no database" * 100)
    with caplog.at_level(logging.WARNING):
        again = reader(evaluator, tmp_path).nll(evaluator, DOCUMENTS, "")
    np.testing.assert_allclose(again[0], plain[0], rtol=1e-6)
    assert "scores are not kept" in caplog.text
