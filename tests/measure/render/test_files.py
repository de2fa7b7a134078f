"""A report as files: whole or not at all, with the numbers in each of them."""

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.measure.render.files import write_report
from di4c_lm.measure.text.gen_ppl import LAYOUT
from tests.measure.render.rows import COMPARISON, ROWS, row

REPORT: dict[str, Any] = {"manifest": {"seed": 1}, "rows": ROWS, "comparisons": [COMPARISON]}


def test_files_hold_the_rows(tmp_path: Path) -> None:
    paths = write_report(tmp_path / "report", "gen_ppl", REPORT, LAYOUT, title="A & B", subtitle="by x")
    names = sorted(p.name for p in (tmp_path / "report").iterdir())
    assert names == ["gen_ppl.csv", "gen_ppl.html", "gen_ppl.json", "gen_ppl.png"]
    assert json.loads(paths["json"].read_text()) == REPORT
    with paths["csv"].open(newline="") as stream:
        read = list(csv.DictReader(stream))
    assert [(r["model"], int(r["steps"]), float(r["gen_ppl"])) for r in read] == [
        (r["model"], r["steps"], r["gen_ppl"]) for r in ROWS
    ]
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
    shown = paths["html"].read_text()
    assert "A &amp; B" in shown and "900 to 1,100" in shown and "-3.25" in shown and "data:image/png;base64," in shown


def test_a_long_sheet_has_a_line_a_number(tmp_path: Path) -> None:
    report = {**REPORT, "cost": [{"model": "student", "steps": 4, "batch": 8, "nfe": 4.0}]}
    paths = write_report(tmp_path, "report", report, dataclasses.replace(LAYOUT, long=True), title="x")
    lines = list(csv.DictReader(io.StringIO(paths["csv"].read_text())))
    (one,) = [line for line in lines if (line["model"], line["steps"], line["metric"]) == ("teacher", "2", "gen_ppl")]
    assert [float(one[key]) for key in ("value", "low", "high")] == [500.0, 450.0, 550.0] and one["part"] == "rows"
    one, shows = [line for line in lines if line["part"] == "comparisons"]
    assert (shows["metric"], shows["value"], shows["p_value"]) == ("detectable", "1.5", "")
    assert one["model"] == "student - teacher" and float(one["p_value"]) == 0.012
    assert [(line["of"], line["metric"]) for line in lines if line["part"] == "cost"] == [("8", "batch"), ("8", "nfe")]


def test_pictures_stand_beside_the_report_and_on_its_page(tmp_path: Path) -> None:
    paths = write_report(tmp_path, "images", REPORT, LAYOUT, title="x", pictures={"samples": b"\x89PNG..."})
    assert paths["samples"] == tmp_path / "samples.png" and paths["samples"].read_bytes() == b"\x89PNG..."
    assert paths["html"].read_text().count("data:image/png;base64,") == 2


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_json_cannot_hold_is_named_and_leaves_the_last_report_whole(
    number: float, tmp_path: Path
) -> None:
    write_report(tmp_path, "gen_ppl", REPORT, LAYOUT, title="x")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="rows: gen_ppl is .* for 'teacher': the report holds finite numbers"):
        write_report(tmp_path, "gen_ppl", {**REPORT, "rows": [row("teacher", 1, number)]}, LAYOUT, title="x")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
