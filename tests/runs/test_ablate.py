import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.tools.helpers import TOOLS, run_tool

TINY = {
    "source": {"kind": "markov", "num_states": 3, "length": 4, "sharpness": 1.5, "seed": 0},
    "sequences": 200,
    "base": [
        "model.hidden_size=16",
        "model.num_blocks=1",
        "model.num_heads=1",
        "teacher.pretrain.steps=3",
        "teacher.pretrain.batch_size=8",
        "train.steps=2",
        "eval.num_samples=64",
        "eval.steps=[1,2]",
    ],
    "recipe": "plain",
    "settings": {
        "plain": ["recipe=di4c"],
        "more: codes": ["mixture.codebook_size=3"],
        "twice": ["recipe=di4c", "rounds=[{train.steps: 1}, {train.steps: 1}]"],
    },
}


def ablate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_tool("ablate", *arguments)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def outcome(study: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = study.parent / "out"
    return out, ablate(f"study={study}", "seeds=[0,1]", "jobs=2", "threads=1", f"out={out}")


def test_a_study_runs_every_setting_with_every_seed(outcome: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = outcome
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((out / "rows.json").read_text())
    found = {(row["model"], row.get("setting"), row["steps"], row["seed"]) for row in rows}
    students = {("student", name, steps, seed) for name in TINY["settings"] for steps in (1, 2) for seed in (0, 1)}
    teachers = {("teacher", None, steps, seed) for steps in (1, 2) for seed in (0, 1)}
    assert found == students | teachers | {("data", None, 0, seed) for seed in (0, 1)} and len(rows) == len(found)
    assert (out / "study.png").stat().st_size > 10_000
    assert "| more: codes |" in done.stdout and "student at 1 - teacher at 2 =" in done.stdout


def test_a_study_resumes_and_the_recipe_s_rows_come_as_one_object(
    study: Path, outcome: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    out, _ = outcome
    before = json.loads((out / "rows.json").read_text())
    done = ablate(f"study={study}", "seeds=[0,1]", f"out={out}", "--json")
    assert done.returncode == 0 and "begun" not in done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert set(rows[0]) == {"model", "steps", "nll", "pair_tv", "seed"}
    expected = [
        {k: v for k, v in row.items() if k != "setting"} for row in before if row.get("setting") in (None, "plain")
    ]
    assert sorted(map(json.dumps, rows)) == sorted(map(json.dumps, expected))


def test_settings_that_cost_another_time_run_for_the_recipe_s(
    study: Path, outcome: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    out, _ = outcome
    for folder in out.glob("more*"):
        (folder / "seconds.json").write_text("1.0")
    for folder in out.glob("plain*"):
        (folder / "seconds.json").write_text("1.5")
    done = ablate(f"study={study}", "seeds=[0,1]", f"out={out}", "equal_time=true", "threads=1")
    assert done.returncode == 0, done.stderr[-3000:]
    names = {row["setting"] for row in json.loads((out / "rows.json").read_text()) if row["model"] == "student"}
    assert names == {"plain", "more: codes", "twice", "more: codes, 3 updates"}
    assert "twice" not in done.stderr and done.stderr.count("begun") == 2


@pytest.mark.parametrize(
    "change, arguments, message",
    [
        ({}, ["equal_time=true", "settings=[twice]"], "equal_time must be false without a source"),
        ({}, ["seeds=[]"], "seeds must be a list of numbers"),
        ({}, ["settings=[none]"], "settings must be among plain, more: codes, twice, got 'none'"),
        ({}, ["jobs=0"], "jobs must be"),
        ({"recipe": "best"}, [], "recipe must be one of plain, more: codes, twice, got 'best'"),
        (
            {"source": {"kind": "dice"}},
            [],
            "source.kind must be one of markov, hidden_markov, characters, codewords, bits, lists, got 'dice'",
        ),
        ({"settings": {"plain": ["objective.alpah=1"]}}, [], "objective.alpah"),
        ({"extra": 1}, [], "the keys must be of source, sequences, base, recipe, settings, teacher_seed"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, change: dict[str, object], arguments: list[str], message: str) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **change}, sort_keys=False))
    done = ablate(f"study={path}", f"out={tmp_path / 'out'}", *arguments)
    assert done.returncode == 2 and message in done.stderr


def test_an_unknown_study_is_named() -> None:
    done = ablate("study=nothing")
    assert done.returncode == 2 and "study must be one of exact_characters" in done.stderr


def test_a_failing_run_ends_the_study_with_its_log(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "sequences": 0}))
    done = ablate(f"study={path}", "seeds=[0]", f"out={tmp_path / 'out'}")
    assert done.returncode == 1 and "teacher, seed 0: exit status" in done.stderr and "ablate.log" in done.stderr


def test_an_interrupted_training_leaves_no_rows(tmp_path: Path) -> None:
    long = tmp_path / "long.yaml"
    plain = {**TINY, "settings": {"plain": ["recipe=di4c", "train.steps=100000"]}}
    long.write_text(yaml.safe_dump(plain, sort_keys=False))
    arguments = [f"study={long}", "seeds=[0]", f"out={tmp_path / 'out'}", "threads=1"]
    running = subprocess.Popen(
        [sys.executable, str(TOOLS / "ablate.py"), *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not list((tmp_path / "out").glob("plain*/round_0/metrics.jsonl")):
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.2)
        (worker,) = psutil.Process(running.pid).children()
        worker.send_signal(signal.SIGTERM)
        assert running.wait(120) == 1
    finally:
        for process in psutil.Process().children(recursive=True):
            process.kill()
    assert not list((tmp_path / "out").glob("plain*/rows.json"))
