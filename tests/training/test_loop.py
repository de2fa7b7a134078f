"""Runs that are killed, stopped, and resumed."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from di4c_lm.training.distributed import EXIT_STATUS

SPEC = {"steps": 12, "stage": 2}


@dataclass
class History:
    """Twelve steps, saved after every fifth, in folders by what happened to them; and how it looked in between."""

    folder: Path
    killed: Any
    killed_trace: list[dict[str, Any]]
    stopped: Any
    stopped_trace: list[dict[str, Any]]
    stopped_files: set[str]
    resumed: Any


@pytest.fixture(scope="module")
def history(tmp_path_factory, run_toy, read_trace) -> History:
    folder = tmp_path_factory.mktemp("runs")
    run_dirs = {name: {"run_dir": str(folder / name)} for name in ("unbroken", "killed", "stopped", "one_to_two")}
    run_toy([{**SPEC, **run_dirs["unbroken"]}], ranks=2).check()
    killed = run_toy([{**SPEC, **run_dirs["killed"], "kill_at": 8}], ranks=2)
    killed_trace = read_trace(folder / "killed")
    stopped = run_toy([{**SPEC, **run_dirs["stopped"], "term_at": 7}], ranks=2)
    stopped_trace = read_trace(folder / "stopped")
    stopped_files = {path.name for path in (folder / "stopped").iterdir()}
    for name in ("two_to_one", "finished", "damaged"):
        shutil.copytree(folder / "unbroken", folder / name)
        for exported in ("raw", "ema"):
            (folder / name / f"{exported}.safetensors").unlink()
    shutil.rmtree(folder / "two_to_one" / "checkpoints" / "step_00000012")
    flip_last_byte(folder / "damaged" / "checkpoints" / "step_00000012" / "rank_00001.safetensors")
    stage_3 = {"steps": 12, "stage": 3, "resume": "must"}
    first_half = {**run_dirs["one_to_two"], "steps": 5}
    run_toy([{**stage_3, "run_dir": str(folder / "two_to_one")}, first_half]).check()
    again = [{**SPEC, "run_dir": str(folder / name)} for name in ("killed", "stopped", "finished", "damaged")]
    resumed = run_toy([*again, {**stage_3, **run_dirs["one_to_two"]}], ranks=2)
    resumed.check()
    return History(folder, killed, killed_trace, stopped, stopped_trace, stopped_files, resumed)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def check_same(run_dir: Path, unbroken: Path, read_trace: Any) -> None:
    assert read_trace(run_dir) == read_trace(unbroken)
    for name in ("raw.safetensors", "ema.safetensors"):
        ours, theirs = load_file(run_dir / name), load_file(unbroken / name)
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_killed_run_resumes_to_the_very_same_losses(history, read_trace):
    assert history.killed.codes == [EXIT_STATUS, -9]
    assert "rank 0 ends the run: rank 1 (host" in history.killed.outputs[0]
    assert history.killed_trace[-1]["step"] == 8  # beyond the checkpoint after step 5
    check_same(history.folder / "killed", history.folder / "unbroken", read_trace)


def test_sigterm_to_one_rank_saves_within_the_step_on_all(history, read_trace):
    history.stopped.check(128 + 15)
    assert history.stopped_trace[-1]["step"] == 8  # the step that it came in
    assert history.stopped_files == {"checkpoints", "metrics.jsonl"}
    check_same(history.folder / "stopped", history.folder / "unbroken", read_trace)


@pytest.mark.parametrize("name", ["finished", "damaged"])
def test_a_finished_run_is_only_exported_and_a_damaged_checkpoint_is_passed_over(name, history, read_trace):
    output = history.resumed.outputs[0]
    assert "step_00000012" in output and "rank_00001.safetensors has another checksum" in output
    check_same(history.folder / name, history.folder / "unbroken", read_trace)


@pytest.mark.parametrize("name", ["two_to_one", "one_to_two"])
def test_another_number_of_ranks_and_another_stage_go_on_with_the_run(name, history, read_trace):
    run_dir, unbroken = history.folder / name, history.folder / "unbroken"
    losses, expected = ([line["loss"] for line in read_trace(path)] for path in (run_dir, unbroken))
    assert losses == pytest.approx(expected, rel=1e-5)
    for file in ("raw.safetensors", "ema.safetensors"):
        ours, theirs = load_file(run_dir / file), load_file(unbroken / file)
        assert all((ours[key] - theirs[key]).abs().max() < 1e-5 * theirs[key].abs().max() for key in theirs)
