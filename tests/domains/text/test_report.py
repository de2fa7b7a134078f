"""What a run of text is measured by: which text its evaluator reads, and which models."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from di4c_lm.data.batches import PackedSource
from di4c_lm.data.text.corpus import Corpus
from di4c_lm.domains.text import report
from di4c_lm.domains.text.settings import Config
from tests.measure.tiny import words

TRAINING, ASIDE = torch.full((4, 8), 2), torch.full((3, 8), 3)
CORPUS = Corpus(
    name="tiny",
    tokenizer=words("a", "b"),
    train=PackedSource(TRAINING.numpy().astype(np.uint16), 0),
    validation=torch.full((2, 8), 4),
    validation_texts=["x"],
    fingerprint="0",
)


@pytest.mark.parametrize("aside, expected", [(ASIDE, ASIDE), (None, TRAINING)])
def test_the_evaluator_reads_the_share_set_apart_and_no_training_text_beside_it(
    aside: torch.Tensor | None, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.Tensor] = []

    def train_evaluator(tokens_ND: torch.Tensor, *_: Any, **__: Any) -> Any:
        read.append(tokens_ND)
        return SimpleNamespace(name="evaluator")

    monkeypatch.setattr(report, "train_evaluator", train_evaluator)
    assert report.trained_evaluator(Config(), dataclasses.replace(CORPUS, judge=aside), tmp_path, "cpu") == "evaluator"
    assert torch.equal(read[0], expected)
