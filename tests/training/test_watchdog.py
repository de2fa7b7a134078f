"""A rank that dies or stops ends the run with its name: the monitor by its laws, the watchdog among real processes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from di4c_lm.training.distributed import EXIT_STATUS, Heartbeat, Monitor

SCRIPT = Path(__file__).with_name("watched.py")


def monitor_of(*heartbeats: Heartbeat) -> Monitor:
    monitor = Monitor(timeout=10, grace=2)
    monitor.hear(dict(enumerate(heartbeats)), 0)
    return monitor


@given(moves=st.lists(st.booleans(), max_size=30))
def test_nobody_is_accused_within_the_timeout(moves: list[bool]) -> None:
    monitor, beats, now = monitor_of(Heartbeat(), Heartbeat()), [0, 0], 0.0
    for pulse, move in enumerate(moves, 1):
        now += 4.9
        beats = [beats[0] + move, beats[1] + (not move)]
        monitor.hear({0: Heartbeat(pulse=pulse, beats=beats[0]), 1: Heartbeat(pulse=pulse, beats=beats[1])}, now)
        assert not monitor.silent(now + 5, broken=False) and not monitor.behind(now)


def test_a_pulse_that_stands_still_is_accused_and_sooner_once_a_collective_broke() -> None:
    monitor = monitor_of(Heartbeat(), Heartbeat(place="the data"))
    monitor.hear({0: Heartbeat(pulse=1), 1: Heartbeat(place="the data")}, 9)
    assert not monitor.silent(10, broken=False)
    assert list(monitor.silent(10.1, broken=False)) == [1]
    assert (
        "no sign of life for 10.1 s" in monitor.silent(10.1, broken=False)[1]
        and "the data" in monitor.silent(11, broken=True)[1]
    )
    assert list(monitor.silent(9, broken=True)) == [1]
    monitor.hear({0: Heartbeat(pulse=2, status="broken")}, 9)
    assert list(monitor.silent(9, broken=False)) == [1]


def test_who_is_furthest_behind_is_accused_once_nobody_moves() -> None:
    monitor = monitor_of(Heartbeat(), Heartbeat(), Heartbeat())
    heartbeats = {0: Heartbeat(beats=5), 1: Heartbeat(beats=4, place="the data of step 2"), 2: Heartbeat(beats=5)}
    monitor.hear(heartbeats, 3)
    monitor.hear({0: Heartbeat(beats=6)}, 8)
    assert not monitor.behind(17.9)
    assert list(monitor.behind(18.1)) == [1] and "15.1 s; it is at the data of step 2" in monitor.behind(18.1)[1]


def test_who_left_is_not_missed_and_who_failed_is_named_with_its_error() -> None:
    monitor = monitor_of(
        Heartbeat(), Heartbeat(pulse=3, status="left"), Heartbeat(status="failed", place="ValueError: no")
    )
    assert not monitor.silent(2, broken=True)
    assert monitor.silent(3, broken=False) == {2: "failed: ValueError: no"}


SCENARIOS = {
    "all_well": {"how": "none", "culprit": 1},
    "paused": {"how": "pause", "culprit": 1},
    "killed": {"how": "kill", "culprit": 1, "said": "no sign of life"},
    "first_killed": {"how": "kill", "culprit": 0, "said": "no sign of life"},  # and with it the store
    "stopped": {"how": "stop", "culprit": 2, "said": "no sign of life"},
    "first_stopped": {"how": "stop", "culprit": 0, "said": "no sign of life"},
    "hung": {"how": "hang", "culprit": 1, "said": "has not moved for .* s; it is at the data of step 3"},
    "failed": {"how": "fail", "culprit": 2, "said": "failed: ValueError: a shard is missing"},
    "alone": {"how": "hang", "culprit": 0, "said": "has not moved for .* s; it is at the data of step 3", "ranks": 1},
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory, find_port, environment) -> tuple[Path, dict[str, Any]]:
    """The folder of the ranks' logs, and how each scenario ended."""
    folder = tmp_path_factory.mktemp("watched")
    specs = [{"name": name, "timeout": 4.0, "port": find_port(), **spec} for name, spec in SCENARIOS.items()]
    command = [sys.executable, str(SCRIPT), str(folder), json.dumps(specs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", [name for name, spec in SCENARIOS.items() if "said" in spec])
def test_the_others_name_the_rank_that_is_missing_and_leave(name, ended) -> None:
    (folder, found), spec = ended, SCENARIOS[name]
    named = rf"rank {spec['culprit']} \(host \S+, process \d+\) .*{spec['said']}"
    for rank in range(spec.get("ranks", 3)):
        if rank == spec["culprit"] and spec["how"] != "hang":
            continue
        output = (folder / f"{name}_{rank}.log").read_text()
        assert found[name]["codes"][str(rank)] == EXIT_STATUS, output
        (line,) = [line for line in output.splitlines() if f"rank {rank} ends the run" in line]
        assert re.search(named, line) and line.count("(host") == 1, line


@pytest.mark.parametrize("name", ["all_well", "paused"])
def test_a_run_in_which_all_go_on_is_left_alone(name, ended) -> None:
    folder, found = ended
    outputs = [(folder / f"{name}_{rank}.log").read_text() for rank in range(3)]
    assert list(found[name]["codes"].values()) == [0, 0, 0] and all("done" in output for output in outputs), outputs
