import json
import sys
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.core.settings import SettingError, section, setting
from di4c_lm.runs.bench.frame import BenchSettings, print_table, run_benchmark

SCRIPT = """
import sys
from pathlib import Path
from tests.runs.bench.test_frame import Settings, measure
from di4c_lm.runs.bench.frame import run_benchmark
sys.exit(run_benchmark("nothing", Settings, measure, sys.argv[1:], ratios=("seconds",)))
"""


@section
class Settings(BenchSettings):
    """A benchmark of nothing."""

    size: int = setting(3, "of it")
    ranks: int = setting(1, "processes")

    WAYS = ("short", "long", "wrong")
    BY_DEFAULT = ("short", "long")

    @property
    def processes(self) -> int:
        return self.ranks


def measure(way: str, settings: Settings) -> dict[str, Any]:
    import os

    import torch

    if way == "wrong":
        raise RuntimeError("it broke")
    seconds = settings.size * (1.0 if way == "short" else 2.0)
    return {
        "seconds": seconds,
        "phases": {"first": seconds / 2, **({"last": 1.0} if way == "long" else {})},
        "threads": torch.get_num_threads(),
        "world": int(os.environ.get("WORLD_SIZE", 1)),
    }


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = tmp_path / "bench_nothing.py"
    path.write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    return str(path)


def run(script: str, *arguments: str) -> int:
    return run_benchmark("nothing", Settings, measure, arguments, ratios=("seconds",), command=(sys.executable, script))


def test_each_way_by_itself_then_a_table_and_one_object(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(script, "size=5", "threads=1", "ranks=2", "--json") == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert list(found) == ["short", "long", "ratio"]
    assert (found["short"]["seconds"], found["long"]["seconds"], found["ratio"]) == (5.0, 10.0, {"seconds": 0.5})
    assert (found["short"]["threads"], found["short"]["world"]) == (1, 2)
    assert [line.split()[0] for line in table] == ["short", "seconds", "first", "threads", "world", "last"]


def test_without_json_there_is_the_table_alone(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(script, "ways=long") == 0
    assert "{" not in capsys.readouterr().out


def test_a_process_that_fails_ends_the_benchmark_with_its_error(script: str) -> None:
    with pytest.raises(SystemExit, match="wrong ended with exit status 1(.|\n)*it broke"):
        run(script, "ways=short,wrong")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("depth=3", "depth"),
        ("size", "size"),
        ("size=many", "size"),
        ("size=0", "size must be at least 1, got 0"),
        ("ways=slow", "ways must be some of short,long,wrong, got 'slow'"),
        ("device=tpu", "device"),
    ],
)
def test_bad_input_is_named_and_ends_with_status_2(
    script: str, capsys: pytest.CaptureFixture[str], wrong: str, named: str
) -> None:
    with pytest.raises(SystemExit) as end:
        run(script, wrong)
    assert end.value.code == 2
    assert named in capsys.readouterr().err


def test_the_ways_are_in_the_order_in_which_they_are_said() -> None:
    assert Settings(ways="long,short").chosen == ["long", "short"]
    assert Settings().chosen == ["short", "long"]
    with pytest.raises(SettingError):
        _ = Settings(ways="short,").chosen


def test_a_row_that_a_way_does_not_have_stays_blank(capsys: pytest.CaptureFixture[str]) -> None:
    print_table({"a": {"x": 1.0}, "b": {"y": 4.0}, "c": {"x": 2.0}})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["a", "b", "c"],
        ["x", "1.000", "2.000"],
        ["y", "4.000"],
    ]
