"""Plain text tables."""

import pytest

from di4c_lm.measure.render.tables import aligned, short, table, with_detectable, with_differences
from di4c_lm.measure.text.gen_ppl import Measured, gen_ppl_table
from tests.measure.render.rows import COMPARISON, ROWS


def test_the_table_is_aligned_and_complete() -> None:
    text = gen_ppl_table(Measured(rows=ROWS, comparisons=[COMPARISON]))
    head, rule, *lines = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in (head, rule, *lines)}) == 1 and len(lines) == len(ROWS)
    assert lines[1].split()[:5] == ["teacher", "1", "1", "1,000", "900.0"]
    assert lines[0].split()[:3] == ["data", "-", "-"]
    assert "student - teacher" in text and "0.012" in text and "-3.25" in text


def test_differences_name_their_metrics_and_both_step_counts() -> None:
    text = with_differences("above", [{**COMPARISON, "minus_steps": 8}], {"gen_ppl": "perplexity"})
    assert text.startswith("above\n\n") and "4 - 8" in text and "perplexity" in text
    assert with_differences("above", []) == "above"


def test_no_rows_make_no_table() -> None:
    assert table([], [("model", str)]) == ""


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned(["a", "number"], [["long name", "1"]]).splitlines()[-1] == "long name       1"


@pytest.mark.parametrize(
    "value, told", [(12345, "12,345"), (1234.5, "1,234"), (12.345, "12.35"), (0.0, "0"), (0.000123, "1.2e-04")]
)
def test_numbers_are_short(value: int | float, told: str) -> None:
    assert short(value) == told


def test_a_line_says_which_differences_would_have_shown() -> None:
    how = {"comparisons": 2, "power": 0.8, "level": 0.05}
    rows = [
        {"metric": "gen_ppl", "smallest": 1.5, "largest": 12.0, **how},
        {"metric": "entropy", "smallest": 0.1, "largest": 0.1, **how},
    ]
    text = with_detectable("above", rows)
    said = "smallest differences that these samples show, 80 % of the time at the level 5 %: gen_ppl 1.5 to 12, entropy 0.1"
    assert text == f"above\n\n{said}" and with_detectable("above", []) == "above"
