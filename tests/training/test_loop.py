"""Runs that are killed, stopped, and resumed."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, run_toy) -> Path:
    """Twelve steps by two ranks, sharded, saved after every fifth."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    run_toy([{"run_dir": str(run_dir), "steps": 12, "stage": 2}], ranks=2).check()
    return run_dir


def check_same(run_dir: Path, unbroken: Path) -> None:
    for name in ("raw.safetensors", "ema.safetensors"):
        ours, theirs = load_file(run_dir / name), load_file(unbroken / name)
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_killed_run_resumes_to_the_very_same_losses(tmp_path, run_toy, read_trace, unbroken):
    spec = {"run_dir": str(tmp_path), "steps": 12, "stage": 2}
    outcome = run_toy([{**spec, "kill_at": 8}], ranks=2)
    assert outcome.codes[1] == -9 and outcome.codes[0] != 0
    assert [line["step"] for line in read_trace(tmp_path)][-1] == 8  # beyond the checkpoint after step 5
    run_toy([spec], ranks=2).check()
    assert read_trace(tmp_path) == read_trace(unbroken)
    check_same(tmp_path, unbroken)


def test_sigterm_to_one_rank_saves_within_the_step_on_all(tmp_path, run_toy, read_trace, unbroken):
    spec = {"run_dir": str(tmp_path), "steps": 12, "stage": 2}
    run_toy([{**spec, "term_at": 7}], ranks=2).check(128 + 15)
    assert (tmp_path / "checkpoints" / "step_00000008").is_dir()
    assert len(read_trace(tmp_path)) == 8 and not (tmp_path / "raw.safetensors").exists()
    run_toy([{**spec, "resume": "must"}], ranks=2).check()
    assert read_trace(tmp_path) == read_trace(unbroken)
    check_same(tmp_path, unbroken)


def test_another_number_of_ranks_and_another_stage_go_on_with_the_run(tmp_path, run_toy, read_trace, unbroken):
    two_to_one, one_to_two = tmp_path / "two_to_one", tmp_path / "one_to_two"
    for path in (two_to_one,):
        shutil.copytree(unbroken, path)
        shutil.rmtree(path / "checkpoints" / "step_00000012")
    spec = {"steps": 12, "resume": "must"}
    first_half = {"run_dir": str(one_to_two), "steps": 5}
    run_toy([{**spec, "run_dir": str(two_to_one), "stage": 3}, first_half]).check()
    run_toy([{**spec, "run_dir": str(one_to_two), "stage": 3}], ranks=2).check()
    expected = [line["loss"] for line in read_trace(unbroken)]
    for path in (two_to_one, one_to_two):
        assert [line["loss"] for line in read_trace(path)] == pytest.approx(expected, rel=1e-5)
        for name in ("raw.safetensors", "ema.safetensors"):
            ours, theirs = load_file(path / name), load_file(unbroken / name)
            assert all((ours[key] - theirs[key]).abs().max() < 1e-5 * theirs[key].abs().max() for key in theirs)


def test_a_finished_run_is_not_trained_further_and_a_damaged_checkpoint_is_passed_over(
    tmp_path, run_toy, read_trace, unbroken
):
    done, damaged = tmp_path / "done", tmp_path / "damaged"
    for path in (done, damaged):
        shutil.copytree(unbroken, path)
        (path / "raw.safetensors").unlink()
    weights = damaged / "checkpoints" / "step_00000012" / "rank_00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    specs = [{"run_dir": str(path), "steps": 12, "stage": 2} for path in (done, damaged)]
    outcome = run_toy(specs, ranks=2)
    outcome.check()
    assert "step_00000012" in outcome.outputs[0] and "rank_00001.safetensors has another checksum" in outcome.outputs[0]
    for path in (done, damaged):
        assert read_trace(path) == read_trace(unbroken)
        check_same(path, unbroken)
