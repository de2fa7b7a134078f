"""Studies whose teachers, texts and evaluator are given by the command."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from di4c_lm.runs.ablate import ablate
from di4c_lm.runs.ablate.outcome import bars, beaten, plot, table
from tests.measure.models import text_model
from tests.measure.tiny import gpt2, words

TOKENIZER = words("aa", "ab")
TOKENIZER.add_special_tokens({"bos_token": "<eos>"})  # as every corpus's has
STUDY = {
    "teacher_steps": [1, 2],
    "base": ["data.validation_share=0.1", "train.steps=2", "train.save_every=0", "run.device=cpu", "eval.steps=[1,2]"],
    "recipe": "sequential",
    "settings": {"chain": ["mixture.codebook_size=3"], "sequential": ["recipe=sequential", "train.steps=2"]},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's file, two teachers, an evaluator and texts."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    for seed in (0, 1):
        replace(text_model(length=8, seed=seed), tokenizer=TOKENIZER).save_pretrained(folder / f"teacher_{seed}")
    evaluator: Any = gpt2(vocabulary=len(TOKENIZER))
    evaluator.save_pretrained(folder / "evaluator")
    TOKENIZER.save_pretrained(folder / "evaluator")
    rng = torch.Generator().manual_seed(0)
    for name, count in (("part_a", 60), ("part_b", 40), ("held_out", 30)):
        rows = torch.randint(2, (count, 12), generator=rng).tolist()
        texts = [" ".join(("aa", "ab")[letter] for letter in row) for row in rows]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


class InTurn:
    """An executor that runs everything here."""

    def __init__(self, _: int) -> None:
        pass

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    map = staticmethod(map)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, place: Path) -> list[str]:
    """Runs of a study are made in this process; the labels of those that were."""
    begun: list[str] = []

    def run(command: list[str], **_: Any) -> Any:
        begun.append(command[-1])
        return subprocess.CompletedProcess(command, ablate.run_here(command[-1]))

    monkeypatch.setattr(ablate.subprocess, "run", run)
    monkeypatch.setattr(ablate, "ThreadPoolExecutor", InTurn)
    monkeypatch.setenv("DI4C_CACHE", str(place / "cache"))
    return begun


def arguments(place: Path, **changes: str) -> list[str]:
    said = {
        "study": str(place / "tiny.yaml"),
        "teacher": f"[{place / 'teacher_0'},{place / 'teacher_1'}]",
        "data": f"[{place / 'part_a.jsonl'},{place / 'part_b.jsonl'}]",
        "validation": str(place / "held_out.jsonl"),
        "evaluator": str(place / "evaluator"),
        "num_samples": "8",
        "seeds": "[0]",
        "threads": "1",
        "out": str(place / "out"),
        **changes,
    }
    return [f"{key}={value}" for key, value in said.items() if value]


def test_a_study_of_given_teachers(place: Path, here: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate.main([*arguments(place, settings="[chain,sequential]"), "--json"]) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    teachers = [str(place / f"teacher_{seed}") for seed in (0, 1)]
    assert {(row["model"], row["steps"], row["teacher"], row["seed"]) for row in found["rows"]} == {
        (model, steps, teacher, 0)
        for model, every in {"data": (0,), "ngram_3": (1,), "ngram_5": (1,)}.items()
        for steps in every
        for teacher in teachers
    } | {
        (model, steps, teacher, 0)
        for model in ("teacher", "chain", "sequential")
        for steps in (1, 2)
        for teacher in teachers
    }
    assert all({*row} == {"model", "steps", "gen_ppl", "entropy", "seed", "teacher"} for row in found["rows"])
    assert {(row["setting"], row["t"], row["teacher"]) for row in found["nats"]} == {
        (setting, t, teacher)
        for setting in ("chain", "sequential")
        for t in (1.0, 0.5, 0.25, 0.125)
        for teacher in teachers
    }
    assert "| sequential |" in said and "(2 teachers)" not in said.split("student at 1")[0]
    kept = json.loads((place / "out" / "rows.json").read_text())
    assert all("beaten_by" in row for row in kept if row["model"] == "student" and "steps" in row)
    assert len(here) == 6
    assert ablate.main(arguments(place, settings="[chain,sequential]")) == 0
    assert len(here) == 6


def test_what_measures_is_part_of_a_run(place: Path, here: list[str]) -> None:
    alone = {"teacher": str(place / "teacher_0"), "settings": "[chain]", "out": str(place / "alone")}
    assert ablate.main(arguments(place, **alone)) == 0
    assert ablate.main(arguments(place, **alone, validation=str(place / "part_b.jsonl"))) == 0
    assert len(here) == 4


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"teacher": ""}, "teacher must be given, got"),
        ({"evaluator": ""}, "evaluator must be given, got ''"),
        ({"evaluator": "no/such/folder"}, "evaluator='no/such/folder'"),
        ({"validation": "nowhere.jsonl"}, "validation: "),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"teacher": "./nowhere"}, "nowhere"),
        ({"settings": "[none]"}, "settings must be among chain, sequential, got 'none'"),
        ({"num_samples": "1"}, "num_samples must be 0, or at least 2, got 1"),
        ({"study": "markov"}, "teacher must be left out where study=markov"),
    ],
)
def test_bad_input_is_named_before_anything_is_run(
    place: Path, here: list[str], changes: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        ablate.main(arguments(place, **changes))
    assert ended.value.code == 2 and message in capsys.readouterr().err and not here


def test_intervals_are_over_teachers_first() -> None:
    rows = [
        {"model": "student", "setting": "s", "steps": 1, "gen_ppl": ppl, "seed": seed, "teacher": teacher}
        for teacher, seed, ppl in (("a", 0, 90.0), ("a", 1, 110.0), ("b", 0, 290.0), ("b", 1, 310.0))
    ]
    over_teachers = table(rows, "gen_ppl")
    assert "| s | 200 ± 1271 |" in over_teachers  # t_.975 of one degree of freedom, 12.71, times 100
    one = [row for row in rows if row["teacher"] == "a"]
    assert "| s | 100 ± 127 |" in table(one, "gen_ppl")
    teacher = [{**row, "model": "teacher", "gen_ppl": 50.0} for row in rows]
    assert bars([*rows, *teacher], "s", "gen_ppl", [(1, 1)]) == [
        "gen_ppl: student at 1 - teacher at 1 = +150 ± 1.3e+03 (2 teachers)"
    ]


def test_a_model_is_beaten_where_every_run_says_so(tmp_path: Path) -> None:
    rows = [
        {"model": "student", "setting": "s", "steps": steps, "seed": seed, "beaten_by": names}
        for steps, seed, names in ((1, 0, ["ngram_3", "ngram_5"]), (1, 1, ["ngram_5"]), (2, 0, ["ngram_5"]), (2, 1, []))
    ]
    assert beaten(rows) == "counting beats s at 1 steps, by generative perplexity: ngram_5"
    rows = [{**row, "gen_ppl": 100.0 + row["seed"], "entropy": 3.0 + row["seed"]} for row in rows]
    assert "| s | 100 ± 6 * | 100 ± 6 |" in table(rows, "gen_ppl") and "*" not in table(rows, "entropy")
    plot(rows, tmp_path / "marked.png", "s")
    plot([{**row, "beaten_by": []} for row in rows], tmp_path / "free.png", "s")
    assert (tmp_path / "marked.png").read_bytes() != (tmp_path / "free.png").read_bytes()
