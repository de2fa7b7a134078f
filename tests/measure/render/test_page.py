"""The page: what it shows of rows, intervals, flags and alarms."""

from typing import Any

import pytest

from di4c_lm.measure.render.page import page
from tests.measure.render.rows import ROWS
from tests.measure.render.self_contained import references

FLAGGED = [{**row, "kind": "model", "rank": None, "flags": ["near-duplicates"]} for row in ROWS]
CANARY = {**FLAGGED[1], "model": "canary: periodic", "kind": "canary"}


def shown(rows: list[Any], **more: Any) -> str:
    report = {"manifest": {"seed": "<1>"}, "rows": rows, "comparisons": [], **more}
    headings, details = {"gen_ppl": "perplexity", "mauve": "MAUVE"}, {"entropy": "entropy"}
    return page(report, title="t", subtitle="s", headings=headings, details=details, pictures={"x": b""})


def test_columns_are_those_that_rows_have() -> None:
    text = shown(ROWS)
    assert "<th>perplexity</th>" in text and "MAUVE" not in text and "<small>900 to 1,100</small>" in text
    assert "More of the same samples" in text and "flags" not in text and "rank" not in text and "&lt;1&gt;" in text


def test_columns_of_other_evaluators_are_named_after_them() -> None:
    rows = [{**row, "gen_ppl@big": 7.0, "gen_ppl_low@big": 6.5, "gen_ppl_high@big": 7.5} for row in ROWS]
    assert "<th>perplexity, big</th>" in shown(rows) and "<small>6.5 to 7.5</small>" in shown(rows)


def test_what_was_not_measured_is_a_dash() -> None:
    text = shown([{**ROWS[1], "gen_ppl": None, "gen_ppl_low": None, "gen_ppl_high": None}])
    assert "<td>–</td>" in text and "None" not in text


def test_a_star_stands_behind_what_counting_beats() -> None:
    beaten = [{**row, "beaten_by": ["ngram_3"] if row["model"] != "data" else []} for row in ROWS]
    models = sum(row["model"] != "data" for row in ROWS)
    assert shown(beaten).count("beaten by counting") == models > 0
    assert "beaten by counting" not in shown([{**row, "beaten_by": []} for row in ROWS])


def test_flags_are_shown() -> None:
    assert shown(FLAGGED).count("near-duplicates") == len(FLAGGED)


@pytest.mark.parametrize(
    "alarms, told", [(["periodic"], "did not catch periodic"), ([], "All 1 canaries were flagged")]
)
def test_canaries_are_answered_for(alarms: list[str], told: str) -> None:
    assert told in shown([*FLAGGED, CANARY], alarms=alarms)


def test_the_page_refers_to_nothing_outside_itself() -> None:
    hostile = '</td><script src="https://x/y.js"></script><img src=//x/z.png>'
    examples = [{"model": hostile, "steps": 2, "prompt": "Once ", "text": hostile}]
    text = shown([{**ROWS[0], "model": hostile}, *ROWS[1:]], examples=examples, cost=[{"model": hostile, "batch": 1}])
    assert references(text) == [] and "<b>Once </b>" in text and "The first samples" in text


def test_references_are_noticed() -> None:
    for one in (
        "<img src=https://x/y.png>",
        "<a href='other.html'>x</a>",
        "<script>1</script>",
        "<style>@import 'x'</style>",
        "<style>a{background:url(x.png)}</style>",
        "<p style='background:url(x.png)'>",
    ):
        assert references(one), one


def test_what_counting_does_stands_before_the_tables() -> None:
    text = shown(ROWS, verdict=["counting beats student", "no n-gram and no token bigram beats teacher"])
    assert text.index("<p class=alarm>counting beats student</p>") < text.index("<table")
    assert "<p class=fine>no n-gram and no token bigram beats teacher</p>" in text
