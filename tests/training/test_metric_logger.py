"""The metric logger of a run."""

import json
import math
import sys
import types

import pytest

from di4c_lm.training import metric_logger as metric_loggers
from di4c_lm.training.metric_logger import MetricLogger, check_tensorboard
from di4c_lm.training.settings import TensorboardConfig, WandbConfig


def write(run_dir, first, last, *, total=20, every=1, **options):
    with MetricLogger(run_dir, step=first, total_steps=total, log_every=every, **options) as metric_logger:
        for step in range(first + 1, last + 1):
            metric_logger.record(step, 10, {"loss": float(step), "lr": 0.1})


def steps(run_dir):
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_a_logged_step_and_the_first_and_the_last(tmp_path):
    write(tmp_path, 0, 14, total=14, every=5)
    assert steps(tmp_path) == [1, 5, 10, 14]
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])
    assert line["loss"] == 5.0 and line["lr"] == 0.1 and line["tokens_per_s"] > 0


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path):
    write(tmp_path, 0, 9)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')  # cut short by a kill
    write(tmp_path, 6, 12)
    assert steps(tmp_path) == list(range(1, 13))


def test_json_without_nan(tmp_path):
    with MetricLogger(tmp_path, step=0, total_steps=3, log_every=1) as metric_logger:
        metric_logger.record(1, 1, {"loss": math.nan, "grad_norm": math.inf})
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["loss"] is None and line["grad_norm"] is None


def test_other_ranks_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(metric_loggers, "is_main", lambda: False)
    write(tmp_path, 0, 3)
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err == ""


def test_wandb_is_asked_only_if_wanted_and_resumes_the_same_run(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values["loss"]))

        def finish(self, exit_code):
            calls.append(("finish", exit_code))

    def init(**options):
        calls.append((options["mode"], options["id"], options["project"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=RuntimeError, Settings=dict))
    write(tmp_path, 0, 1)
    assert calls == []
    for first in (0, 1):
        write(tmp_path, first, first + 1, wandb=WandbConfig(mode="offline"))
    assert calls[0] == calls[3] == ("offline", (tmp_path / "wandb_id.txt").read_text(), "di4c-lm")
    assert calls[1:3] == [(1, 1.0), ("finish", 0)] and calls[4:] == [(2, 2.0), ("finish", 0)]


def test_tensorboard_reads_back_what_was_logged_of_a_resumed_run_too(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, 0, 3)
    assert not (tmp_path / "tensorboard").exists()
    for first, last in ((0, 9), (6, 12)):
        write(tmp_path, first, last, tensorboard=TensorboardConfig(enabled=True))
    read = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"loss", "lr", "tokens_per_s"}
    assert [(event.step, event.value) for event in read.Scalars("loss")] == [(n, float(n)) for n in range(1, 13)]


def test_tensorboard_without_its_package_is_refused_by_name(monkeypatch):
    check_tensorboard(TensorboardConfig())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_tensorboard(TensorboardConfig())
    with pytest.raises(ValueError, match=r"tensorboard.enabled must be false, got true: .* the extra \[train\]"):
        check_tensorboard(TensorboardConfig(enabled=True))
