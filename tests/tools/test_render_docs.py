"""Figures of the documentation are those of the result files: pages that differ, and tables that stand for themselves, are noticed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.core.settings import to_dict
from di4c_lm.domains.text.settings import TextSettings
from tests.measure.render.rows import ROWS
from tools import keep_result, render_docs
from tools.docs import results
from tools.docs.results import FACTS, RESULTS, ROOT, pages, read_result, render, unmarked_tables

NAMES = sorted(path.stem for path in RESULTS.glob("*.json"))
RESULT: dict[str, Any] = {
    "manifest": {**dict.fromkeys(FACTS, "x"), "command": "di4c train text"},
    "views": {
        "default": {
            "columns": [["", "{model}"]],
            "pivot": "steps",
            "heads": {"1": "1 step", "4": "4 steps"},
            "cells": ["{ppl:,} ± {ppl_pm}", "{ppl:,}"],
        },
        "flat": {"columns": [["model", "{model}"], ["perplexity", "{ppl:.1f}"]]},
    },
    "rows": [
        {"model": "teacher", "steps": 1, "ppl": 1332, "ppl_pm": 7},
        {"model": "teacher", "steps": 4, "ppl": 410},
        {"model": "a|b", "steps": 4, "ppl": 256},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.json").write_text(json.dumps(RESULT))
    return tmp_path


def test_every_page_shows_the_figures_of_the_result_files() -> None:
    assert render_docs.render_docs(render_docs.Settings(check=True)) == "every figure is that of its result file"


def test_no_table_of_figures_stands_for_itself() -> None:
    found = {page.name: lines for page in pages() if (lines := unmarked_tables(page.read_text(encoding="utf-8")))}
    assert not found


@pytest.mark.parametrize("name", NAMES)
def test_every_result_says_how_it_was_made_and_is_shown(name: str) -> None:
    assert read_result(name)["manifest"]["date"].startswith("20")
    assert any(f" {name}" in page.read_text(encoding="utf-8") for page in pages())


def test_an_entry_that_counting_beats_says_so_first() -> None:
    """In the verdict, which is the first paragraph of the entry."""
    for page in sorted((ROOT / "docs" / "measurements").glob("*.md")):
        for entry in page.read_text(encoding="utf-8").split("\n## ")[1:]:
            if not (names := re.findall(r"<!-- table: (\w+)", entry)):
                continue
            beaten = [name for name in names if "beat" in read_result(name)["manifest"]["counting"]]
            verdict = entry.split("\n\n")[1]
            assert verdict.startswith("**Verdict"), entry[:80]
            assert not beaten or re.search(r"n-gram|ounting|bigram", verdict), (page.name, entry[:80])


def test_a_table_is_a_view_of_the_rows(folder: Path) -> None:
    shown = render("<!-- table: toy -->\nold\n<!-- end -->", folder)
    assert shown.splitlines() == [
        "<!-- table: toy -->",
        "|  | 1 step | 4 steps |",
        "| --- | --- | --- |",
        "| teacher | 1,332 ± 7 | 410 |",
        "| a\\|b |  | 256 |",
        "<!-- end -->",
    ]
    assert "| teacher | 410.0 |" in render("<!-- table: toy flat --><!-- end -->", folder)
    assert render(shown, folder) == shown


def test_a_figure_in_a_sentence_is_one_row(folder: Path) -> None:
    text = "it has <!-- value: toy; model=teacher; steps=4; {ppl:,} -->9<!-- end --> there"
    assert "-->410<!-- end --> there" in render(text, folder)
    assert "Made by `di4c train text`, x" in render("<!-- made: toy --><!-- end -->", folder)


@pytest.mark.parametrize(
    "mark, told",
    [
        ("table: lost", "there is no such result file"),
        ("table: toy other", "view must be one of default, flat, got 'other'"),
        ("value: toy; model=teacher; {ppl}", "expected one row with {'model': 'teacher'}, found 2"),
        ("value: toy; steps=1; {lost}", "no value for '{lost}'"),
    ],
)
def test_a_mark_without_a_meaning_is_named(mark: str, told: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        render(f"<!-- {mark} --><!-- end -->", folder)
    assert mark in str(caught.value)


def test_a_result_that_does_not_say_how_it_was_made_is_refused(folder: Path) -> None:
    manifest = {fact: said for fact, said in RESULT["manifest"].items() if fact != "seeds"}
    (folder / "toy.json").write_text(json.dumps({**RESULT, "manifest": manifest}))
    with pytest.raises(ValueError, match=r"lacks manifest\.seeds"):
        read_result("toy", folder)


def test_a_page_that_differs_is_named_and_written_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = folder / "page.md"
    page.write_text("<!-- value: toy; steps=1; {ppl} -->1333<!-- end -->")
    monkeypatch.setattr(render_docs, "pages", lambda: [page])
    monkeypatch.setattr(render_docs, "ROOT", folder)
    monkeypatch.setattr(render_docs, "render", lambda text: render(text, folder))
    with pytest.raises(SystemExit) as ended:
        render_docs.main(["check=true"])
    assert ended.value.code == 2 and "1333" in page.read_text()
    assert render_docs.main([]) == 0 and "1332" in page.read_text()


def test_tables_without_a_mark_are_noticed() -> None:
    assert results.unmarked_tables("| a | 1.5 | 2,000 |\n| b | x | 3 |") == ["| a | 1.5 | 2,000 |"]
    assert results.unmarked_tables("<!-- table: toy -->\n| a | 1 | 2 |\n<!-- end -->") == []


def report_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    run = to_dict(TextSettings()) | {"mixture": {"kind": "class_chain"}, "objective": {"kind": "likelihood"}}
    facts = {"time": "2026-11-27T01:00:00", "commit": "abc", "seed": 0, "length": 64, "judge": {"name": "/a/evaluator"}}
    return {
        "manifest": {**facts, "config": {"run": run}, "machine": {"platform": "Linux"}, "versions": {"torch": "2"}},
        "rows": rows,
    }


def test_a_report_is_kept_with_its_manifest_and_can_be_shown(tmp_path: Path) -> None:
    counted = {**ROWS[1], "model": "ngram_3", "nfe": 0.0}
    (tmp_path / "gen_ppl.json").write_text(
        json.dumps(report_of([*ROWS, counted]) | {"verdict": ["counting beats student"]})
    )
    words = [f"report={tmp_path / 'gen_ppl.json'}", "name=kept", "command=di4c train text"]
    assert keep_result.main([*words, f"out={tmp_path}"]) == 0
    result = read_result("kept", tmp_path)
    assert result["manifest"]["training"] == (
        "teacher 900 updates of 32; student `objective=likelihood`, 200 updates of 16"
    )
    assert result["manifest"]["counting"] == "counting beats student"
    assert result["manifest"]["commit"] == "abc" and "/a/" not in (tmp_path / "kept.json").read_text()
    shown = render("<!-- table: kept --><!-- end --> <!-- table: kept entropy --><!-- end -->", tmp_path)
    assert "| student |  | 1,000 (900 to 1,100) | 500 (450 to 550) | 250 (225 to 275) |" in shown
    assert "| validation text | 3.50 |" in shown
    assert "| n-grams of the training text, 2 tokens of context | 1,000 (900 to 1,100) |" in shown
    short = render("<!-- table: kept short --><!-- end -->", tmp_path)
    assert "|  | none | 1 | 2 | 4 |" in short and "| student |  | 1,000 | 500 | 250 |" in short


def test_a_study_of_an_exact_teacher_is_kept(tmp_path: Path) -> None:
    rows = [
        {
            "model": "student",
            "setting": "codes",
            "steps": steps,
            "nll": 100.0 + 2 * seed,
            "factorisation_nats": 4.0 / steps,
            "seed": seed,
        }
        for steps in (1, 2)
        for seed in (0, 1)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    facts = [f"{key}=some" for key in ("data", "model", "training", "samples")]
    words = [f"report={tmp_path / 'rows.json'}", "name=kept", "command=di4c ablate", f"out={tmp_path}"]
    assert keep_result.main([*words, *facts]) == 0
    shown = render("<!-- table: kept --><!-- end --> <!-- table: kept factorisation_nats --><!-- end -->", tmp_path)
    assert "| codes | 101.0 ± 12.7 | 101.0 ± 12.7 |" in shown and "| codes | 4.00 ± 0.00 | 2.00 ± 0.00 |" in shown
    with pytest.raises(SystemExit):
        keep_result.main(words)


def test_a_study_of_a_given_teacher_is_kept_with_counting_first_and_nats_by_time(tmp_path: Path) -> None:
    measured, ends = {"entropy": 3.8, "copied_8": 0.125}, {"gen_ppl_low": 3500.0, "gen_ppl_high": 4500.0}
    rows = [
        {"model": "ngram_5", "steps": 1, "gen_ppl": 90.0, **measured},
        {"model": "teacher", "steps": 1, "gen_ppl": 4000.0, **ends, **measured, "beaten_by": ["ngram_5"]},
        {"model": "student", "setting": "head", "t": 0.5, "nats": 21.0},
    ]
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "seed": 0} for row in rows]))
    facts = [f"{key}=some" for key in ("data", "model", "training", "samples", "command", "name")]
    words = [f"report={tmp_path / 'rows.json'}", f"out={tmp_path}", *facts]
    with pytest.raises(SystemExit):
        keep_result.main(words)
    assert keep_result.main([*words, "evaluator=e"]) == 0
    shown = render("<!-- table: some --><!-- end -->\n<!-- table: some copied_8 --><!-- end -->", tmp_path)
    assert (
        "| n-grams of the training text, 4 tokens of context | 90 |  |" in shown
        and "| teacher |  | 4,000 (3,500 to 4,500) |" in shown
    )
    assert "| teacher |  | 12.5% |" in shown
    assert "| head | 21.0 |" in render("<!-- table: some nats --><!-- end -->", tmp_path)
    assert "counting beats teacher at every number of steps" in render("<!-- made: some --><!-- end -->", tmp_path)


@pytest.mark.parametrize("words", [["name=x"], ["report={}/other.json", "name=x", "command=c"]])
def test_what_is_no_report_of_text_is_refused(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(json.dumps({"manifest": {"config": {}}, "rows": [{"fid": 1.0}]}))
    with pytest.raises(SystemExit) as ended:
        keep_result.main([word.format(tmp_path) for word in words])
    assert ended.value.code == 2
