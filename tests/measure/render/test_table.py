import csv
import json
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.measure.render.table import plot, table, write_report


def row(model: str, steps: int, gen_ppl: float = 20.0) -> dict[str, Any]:
    return {
        "model": model,
        "steps": steps,
        "nfe": float(steps),
        "gen_ppl": gen_ppl,
        "gen_ppl_low": gen_ppl * 0.9,
        "gen_ppl_high": gen_ppl * 1.1,
        "entropy": 3.5,
        "entropy_low": 3.4,
        "entropy_high": 3.6,
        "num_samples": 8,
    }


ROWS = [row("data", 0), *(row(name, n, 1000.0 / n) for name in ("teacher", "student") for n in (1, 2, 4))]
COMPARISON = {
    "metric": "gen_ppl",
    "of": "student",
    "minus": "teacher",
    "steps": 4,
    "difference": -3.25,
    "difference_low": -4.0,
    "difference_high": -2.0,
    "p_value": 0.012,
}


def test_files_hold_the_rows(tmp_path: Path) -> None:
    paths = write_report(tmp_path / "report", ROWS, manifest={"seed": 1}, comparisons=[COMPARISON])
    assert sorted(p.name for p in (tmp_path / "report").iterdir()) == ["gen_ppl.csv", "gen_ppl.json", "gen_ppl.png"]
    assert json.loads(paths["json"].read_text()) == {"manifest": {"seed": 1}, "rows": ROWS, "comparisons": [COMPARISON]}
    with paths["csv"].open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [(r["model"], int(r["steps"]), float(r["gen_ppl"])) for r in read] == [
        (r["model"], r["steps"], r["gen_ppl"]) for r in ROWS
    ]
    assert paths["png"].read_bytes().startswith(b"\x89PNG")


def test_an_unwritable_number_leaves_the_last_report_whole(tmp_path: Path) -> None:
    write_report(tmp_path, ROWS, manifest={})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report(tmp_path, [row("teacher", 1, float("inf"))], manifest={})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 rows"):
        write_report(tmp_path, [], manifest={})


@pytest.mark.parametrize("rows", [[row("data", 0)], [row("teacher", 1)], [row(f"m{i}", 3) for i in range(7)]])
def test_the_plot_stands_any_selection(rows: list[dict[str, Any]]) -> None:
    assert plot(rows).startswith(b"\x89PNG")


def test_the_plot_depends_on_the_numbers() -> None:
    assert plot(ROWS) == plot(ROWS) != plot([row("data", 0), *ROWS[2:]])


def test_the_table_is_aligned_and_complete() -> None:
    text = table(ROWS, [COMPARISON])
    head, rule, *lines = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in (head, rule, *lines)}) == 1 and len(lines) == len(ROWS)
    assert lines[1].split()[:5] == ["teacher", "1", "1", "1,000", "900.0"]
    assert lines[0].split()[:3] == ["data", "-", "-"]
    assert "student - teacher" in text and "0.012" in text and "-3.25" in text
