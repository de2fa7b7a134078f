"""Each flag is raised by what it is about, and by nothing else; ranks; alarms."""

import math
from typing import Any

import pytest
import torch

from di4c_lm.measure.text.suite import band_of, flags, ranked, uncaught

BAND = (3.0, 4.0, 0.1)
REAL: dict[str, Any] = {
    "kind": "data",
    "noise": "float64",
    "entropy": 3.5,
    "rep_4": 0.05,
    "near_duplicates": 0.02,
    "corpus_entropy": 6.0,
    "gen_ppl": 20.0,
    "gen_ppl_low": 19.0,
    "gen_ppl_high": 21.0,
    "order_gain": 2.0,
    "gradient_moment_p": 0.5,
}


@pytest.mark.parametrize(
    "changed, flag",
    [
        ({"entropy": 2.9}, "entropy outside 3.000 to 4.000"),
        ({"entropy": 4.1}, "entropy outside 3.000 to 4.000"),
        ({"rep_4": 0.11}, "repetition above 0.100"),
        ({"near_duplicates": 0.08}, "near-duplicates"),
        ({"corpus_entropy": 5.3}, "corpus entropy below 5.400"),
        ({"gen_ppl_high": 18.9}, "perplexity below that of the text itself"),
        ({"order_gain": 0.19}, "order of tokens means nothing"),
        ({"noise": "float32"}, "noise is float32"),
        ({"tail_p": 1e-4}, "rare tokens sampled too seldom"),
        ({"kind": "data", "gradient_moment_p": 1e-4}, "halves of the validation set differ"),
    ],
)
def test_each_flag_has_its_reason(changed: dict[str, Any], flag: str) -> None:
    assert flags({**REAL, "kind": "model", **changed}, REAL, BAND) == [flag]


def test_a_row_like_the_text_has_no_flag_and_a_far_one_neither() -> None:
    assert flags(REAL, REAL, BAND) == []
    assert (
        flags(
            {**REAL, "kind": "model", "gradient_moment_p": 1e-9, "gen_ppl_low": 90.0, "gen_ppl_high": 99.0}, REAL, BAND
        )
        == []
    )


def test_other_evaluators_are_heeded_too() -> None:
    real = {**REAL, "gen_ppl@big": 9.0, "gen_ppl_low@big": 8.0, "gen_ppl_high@big": 10.0}
    row = {**real, "kind": "model", "gen_ppl_high@big": 7.9}
    assert flags(row, real, BAND) == ["perplexity below that of the text itself"]


def test_the_band_is_that_of_the_reference() -> None:
    band = band_of(
        torch.tensor([[1, 1, 1, 1], [1, 1, 2, 2], [1, 2, 3, 4]])
    )  # entropies 0, log 2 and log 4, none with two 4-grams
    low, high = 0.05 * math.log(2), math.log(4) - 0.05 * math.log(2)
    assert band == pytest.approx((low, high, 0.01))


def distances(model: str, far: float, mauve: float, **more: Any) -> dict[str, Any]:
    near = {"gradient_moment": far, "energy": far, "energy_hand": far, "mauve": mauve}
    return {"model": model, "kind": "model", "steps": 2, "flags": [], **near, **more}


def test_ranks_follow_all_four_distances_and_leave_out_the_flagged() -> None:
    rows = [distances("far", 3.0, 0.1), distances("near", 1.0, 0.9), distances("flagged", 0.0, 1.0, flags=["noise"])]
    assert [row["rank"] for row in ranked([*rows, {"model": "unmeasured", "flags": []}])] == [2, 1, None, None]
    split = [distances("a", 1.0, 0.1), distances("b", 2.0, 0.9)]  # three distances say a, one says b
    assert [row["rank"] for row in ranked(split)] == [1, 2]


@pytest.mark.parametrize(
    "canary, told",
    [
        ({"flags": ["noise"], "rank": None}, []),
        ({"flags": [], "rank": 3}, []),
        ({"flags": [], "rank": 1}, ["cheat, 2 steps"]),
        ({"flags": [], "rank": None}, ["cheat, 2 steps"]),
    ],
)
def test_a_canary_is_caught_by_a_flag_or_the_last_rank(canary: dict[str, Any], told: list[str]) -> None:
    model = distances("m", 1.0, 0.5, rank=2)
    assert uncaught([model, distances("cheat", 0.0, 1.0) | {"kind": "canary"} | canary]) == told
