"""What a run of text is measured by: which text its evaluator reads, and which models."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from di4c_lm.domains.text import domain
from di4c_lm.domains.text.settings import TextSettings
from tests.domains.text.corpora import ASIDE, CORPUS, TRAINING


@pytest.mark.parametrize("aside, expected", [(ASIDE, ASIDE), (None, TRAINING)])
def test_the_evaluator_reads_the_share_set_apart_and_no_training_text_beside_it(
    aside: torch.Tensor | None, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.Tensor] = []

    def train_evaluator(tokens_ND: torch.Tensor, *_: Any, **__: Any) -> Any:
        read.append(tokens_ND)
        return SimpleNamespace(name="evaluator")

    monkeypatch.setattr(domain, "train_evaluator", train_evaluator)
    assert (
        domain.trained_evaluator(TextSettings(), dataclasses.replace(CORPUS, evaluator=aside), tmp_path, "cpu")
        == "evaluator"
    )
    assert torch.equal(read[0], expected)
