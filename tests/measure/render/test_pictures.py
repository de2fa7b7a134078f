"""Numbers against steps, and images beside each other."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from di4c_lm.measure.render.pictures import plot, sample_sheet, strip, training_curves
from di4c_lm.measure.text.gen_ppl import LAYOUT
from tests.measure.render.rows import ROWS, row


def picture(rows: list[dict[str, Any]]) -> bytes:
    return plot(rows, LAYOUT.panels, data=LAYOUT.data)


@pytest.mark.parametrize(
    "rows", [[row("teacher", 1)], [row("data", 0), row("m", 2)], [row(f"m{i}", 3) for i in range(7)]]
)
def test_the_plot_stands_any_selection(rows: list[dict[str, Any]]) -> None:
    assert picture(rows).startswith(b"\x89PNG")


def test_there_is_no_plot_without_a_model_or_a_metric() -> None:
    assert picture([row("data", 0)]) == b"" == picture([{"model": "m", "steps": 1, "nfe": 1.0}])


def test_the_plot_depends_on_the_numbers() -> None:
    assert picture(ROWS) == picture(ROWS) != picture([row("data", 0), *ROWS[2:]])


def test_what_counting_beats_is_hollow() -> None:
    marked = [{**row, "beaten_by": ["ngram_5"] * (row["steps"] == 1)} for row in ROWS]
    free = [{**row, "beaten_by": []} for row in ROWS]
    assert picture(free) == picture(ROWS) != picture(marked)


def test_canaries_are_not_plotted() -> None:
    assert picture(ROWS) == picture([*ROWS, {**row("periodic", 0), "kind": "canary"}])


def test_a_strip_shows_every_image() -> None:
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * 100 * np.ones((1, 6, 6, 1), np.uint8)
    shown = strip(images)
    assert shown.shape == (48, 3 * (48 + 2), 3)
    assert [shown[20, 50 * n + 20].tolist() for n in range(3)] == [[100 * n] * 3 for n in range(3)]
    assert (shown[:, 48:50] == 255).all()


def test_the_sheet_has_a_line_a_name() -> None:
    images = np.zeros((4, 6, 6, 1), np.uint8)
    sheet = sample_sheet({"real images": images, "student, 2 steps": images})
    assert Image.open(io.BytesIO(sheet)).size == (max(220, 4 * 50 + 12), 2 * (48 + 22 + 6) + 6)


def test_training_is_drawn_from_what_was_logged() -> None:
    steps = [{"step": n, "loss": 5.0 / n, "grad_norm": None if n == 2 else 1.0} for n in range(1, 6)]
    assert training_curves(steps).startswith(b"\x89PNG") and training_curves(steps) != training_curves(steps[:4])
    assert training_curves(steps[:1]) == b""
