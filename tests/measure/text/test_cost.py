"""Cost of sampling: counted calls, ordered times."""

from pathlib import Path
from typing import Any

import torch

from di4c_lm.measure.text.cost import cost_part
from di4c_lm.measure.text.samples import TextRun
from di4c_lm.measure.text.suite import ReportConfig
from tests.measure.models import text_model


def test_rows_hold_calls_times_and_memory() -> None:
    models = {"one": text_model(), "two": text_model(codes=3)}
    settings = ReportConfig(steps=(1, 2), cost_batches=(1, 3))
    place: dict[str, Any] = {"settings": {}, "folder": Path(), "paths": {}, "evaluator": ""}
    run = TextRun(models=models, validation=torch.zeros(0, 3, dtype=torch.long), **place)
    rows = cost_part(run, settings)["cost"]
    assert [(row["model"], row["steps"], row["batch"]) for row in rows][:4] == [
        ("one", 1, 1),
        ("one", 1, 3),
        ("one", 2, 1),
        ("one", 2, 3),
    ]
    assert len(rows) == 8
    for row in rows:
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        assert abs(row["tokens_per_s"] * row["seconds"] - 3 * row["batch"]) < 1e-6
        assert 0 < row["nfe"] <= row["steps"] and (row["peak_mib"] is None or row["peak_mib"] >= 0)
