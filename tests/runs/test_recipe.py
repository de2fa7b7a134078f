"""A run of the toy domain in this process: its stages, what is cached, resumed and refused, and its rounds."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from di4c_lm.data.batches import PackedSource
from di4c_lm.domains.domain import FinishedRun
from di4c_lm.mixtures.codes import CodesSettings
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.sdtt import Sdtt
from di4c_lm.runs import recipe
from di4c_lm.runs.folder import run_dir
from di4c_lm.training.loop import Trained
from di4c_lm.training.run_state import Progress
from di4c_lm.training.settings import RunConfig
from tests.domains.toy import DOMAIN, ToyModel, ToySettings
from tests.runs.helpers import contents, metrics, run, same, weights


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """`killer(number, signal)` sends this process a signal while it reads its `number`-th batch from now on."""
    read, planned = PackedSource.read, {}

    def watched(self: PackedSource, start: int, count: int) -> Any:
        if planned and count == 4:
            planned["left"] -= 1
            if planned["left"] == 0:
                os.kill(os.getpid(), planned.pop("signal"))
                planned.clear()
        return read(self, start, count)

    monkeypatch.setattr(PackedSource, "read", watched)
    yield lambda number, name: planned.update(left=number, signal=name)
    assert not planned, "the signal was not sent"


def test_a_run_leaves_its_settings_metrics_checkpoints_models_and_report(make: Callable[..., ToySettings]) -> None:
    settings = make()
    folder = run(settings)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml",
        "run.log",
        "metrics.jsonl",
        "checkpoints",
        "teacher",
        "student",
        "parts.json",
        "report",
        "toy.json",
    }
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4]
    assert {"loss", "distil", "consistency", "data_corr", "data_marginal", "lr", "grad_norm", "skipped"} < set(
        metrics(folder)[0]
    )
    finished = FinishedRun.read(folder)
    assert finished.domain is DOMAIN and finished.settings == settings
    assert finished.models == {"teacher": folder / "teacher", "student": folder / "student"}
    before, after = weights(folder / "teacher"), weights(folder / "student")
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the backbone is the teacher's"
    rows = json.loads((folder / "report" / "toy.json").read_text())["rows"]
    assert [(row["model"], row["steps"]) for row in rows] == [
        ("teacher", 1),
        ("teacher", 4),
        ("student", 1),
        ("student", 4),
    ]


def test_a_run_keeps_a_log_of_its_stages_and_goes_on_with_it(make: Callable[..., ToySettings]) -> None:
    folder = run(make())
    run(make(train={"steps": 6}))
    lines = [line.split(" ", 2)[2] for line in (folder / "run.log").read_text().splitlines()]
    stages = [line.partition(" (")[0] for line in lines if line.startswith("stage")]
    assert stages[:2] == ["stage 1 of 5: data", "stage 2 of 5: teacher, train"] and len(stages) == 10
    assert [line.split(", ")[-1] for line in stages if "training" in line] == ["4 updates", "6 updates"]
    bars = [line for line in lines if "step/s" in line and "100%" in line]
    assert any("4/4" in line for line in bars) and any("6/6" in line for line in bars)


def test_a_finished_run_can_be_moved(make: Callable[..., ToySettings], tmp_path: Path) -> None:
    folder = run(make())
    moved = folder.rename(tmp_path / "elsewhere")
    assert FinishedRun.read(moved).models["teacher"] == moved / "teacher"
    assert DOMAIN.report(FinishedRun.read(moved)).count("\n") == 3


def test_without_its_report_a_run_can_have_one_later(make: Callable[..., ToySettings]) -> None:
    folder = run(make(eval={"skip": True}))
    assert not (folder / "report").exists()
    DOMAIN.report(FinishedRun.read(folder))
    assert (folder / "report" / "toy.json").exists()


def test_the_same_settings_give_the_same_student(make: Callable[..., ToySettings]) -> None:
    one, two, other = run(make("a")), run(make("b")), run(make("c", train={"seed": 1}))
    assert metrics(one) == metrics(two) and same(one / "student", two / "student")
    assert not same(one / "student", other / "student")


# The teacher


def trained_teachers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each teacher that is trained."""
    pretrain, calls = recipe.pretrain, []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return pretrain(*arguments)

    monkeypatch.setattr(recipe, "pretrain", counted)
    return calls


def test_a_trained_teacher_is_taken_from_the_cache(
    make: Callable[..., ToySettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = trained_teachers(monkeypatch)
    first = run(make("a"))
    second = run(make("b", train={"seed": 3}, optim={"lr": 0.1}))
    assert len(calls) == 1 and same(first / "teacher", second / "teacher")
    longer = make("a").teacher
    longer = dataclasses.replace(longer, pretrain=dataclasses.replace(longer.pretrain, steps=5))
    third = run(make("c", teacher=longer))
    assert len(calls) == 2 and not same(first / "teacher", third / "teacher"), "what shapes a teacher is in its key"
    run(make("d", sequences=32))
    assert len(calls) == 3, "its data too"


def test_the_cached_teacher_is_the_average_of_its_training(
    make: Callable[..., ToySettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    averages, pretrain = [], recipe.pretrain

    def kept(*arguments: Any) -> Any:
        averages.append(pretrain(*arguments))
        return averages[-1]

    monkeypatch.setattr(recipe, "pretrain", kept)
    found = weights(run(make("a")) / "teacher")
    assert all(torch.equal(found[name], value) for name, value in averages[0].ema.items())


def test_a_damaged_teacher_is_made_again(
    make: Callable[..., ToySettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = trained_teachers(monkeypatch)
    first = run(make("a"))
    (entry,) = (path for path in (tmp_path / "cache" / "teachers").iterdir() if path.is_dir())
    content = (entry / "model.safetensors").read_bytes()
    (entry / "model.safetensors").write_bytes(content[:-100])
    second = run(make("b"))
    assert len(calls) == 2 and str(entry) in caplog.text
    assert same(first / "teacher", second / "teacher") and (entry / "model.safetensors").read_bytes() == content


def test_a_teacher_is_given_or_random(make: Callable[..., ToySettings], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = trained_teachers(monkeypatch)
    random = run(make("a", teacher={"kind": "random"}))
    assert all(value.any() for value in weights(random / "teacher").values()), "no gate is left at zero"
    given = run(make("b", teacher={"kind": "pretrained", "path": str(random / "teacher")}))
    assert not calls and same(random / "teacher", given / "teacher")
    with pytest.raises(ValueError, match="/nowhere"):
        recipe.run(DOMAIN, make("c", teacher={"kind": "pretrained", "path": "/nowhere"}))


# Interruption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_resumes_to_the_same_student(
    make: Callable[..., ToySettings], killer: Callable[[int, int], None], number: int
) -> None:
    whole = run(make("whole"))
    settings = make("broken")
    killer(2, number)
    assert recipe.run(DOMAIN, settings) == 128 + number
    folder = run_dir(DOMAIN, settings)
    assert not (folder / "student").exists() and len(metrics(folder)) == 2
    assert not list(folder.glob("*.lock")) and not (folder / ".lock").exists()
    assert metrics(run(settings)) == metrics(whole) and same(folder / "student", whole / "student")


def test_an_interrupted_teacher_resumes_to_the_same_teacher(
    make: Callable[..., ToySettings], killer: Callable[[int, int], None]
) -> None:
    whole = run(make("whole"))
    settings = make("broken", cache="another")
    killer(2, signal.SIGTERM)
    assert recipe.run(DOMAIN, settings) == 128 + signal.SIGTERM
    assert not (run_dir(DOMAIN, settings) / "metrics.jsonl").exists(), "the student had not begun"
    folder = run(settings)
    assert same(folder / "teacher", whole / "teacher") and same(folder / "student", whole / "student")


# Objectives


@pytest.mark.parametrize(
    "objective, terms",
    [
        (Mdlm(), {"bound_per_token"}),
        (Mdlm(init="teacher", times="iid"), {"bound_per_token"}),
        (Sdtt(dt=0.125), {"divergence_per_token"}),
        (Di4C(consistency_samples=2), {"consistency", "data_marginal"}),
    ],
)
def test_every_objective_trains_by_the_same_recipe(
    make: Callable[..., ToySettings], objective: Any, terms: set[str]
) -> None:
    folder = run(make(objective=objective))
    assert terms < set(metrics(folder)[0])
    scratch = isinstance(objective, Mdlm) and objective.init == "scratch"
    assert (folder / "teacher").exists() != scratch
    assert ("student", 1) in {
        (row["model"], row["steps"]) for row in json.loads((folder / "report" / "toy.json").read_text())["rows"]
    }


def test_an_objective_without_lambda_refuses_a_mixture_for_teacher(make: Callable[..., ToySettings]) -> None:
    mixture = run(make("a")) / "student"
    given = {"kind": "pretrained", "path": str(mixture)}
    with pytest.raises(ValueError, match="objective must be likelihood or di4c where the teacher is a mixture"):
        recipe.run(DOMAIN, make("b", teacher=given, objective=Sdtt()))
    again = run(make("c", teacher=given, train={"steps": 1}, export="merged"))
    assert set(weights(again / "student")) == set(weights(mixture)), "a second round goes on with λ"


def pretrained(settings: ToySettings, monkeypatch: pytest.MonkeyPatch, *, ranks: int = 1, **how: Any) -> dict[str, Any]:
    """What `train` is given for a teacher that is trained as `how` says."""
    given: dict[str, Any] = {}

    def trained(objective: Any, batches: Any, **said: Any) -> Trained:
        given.update(said, objective=objective, size=batches.global_batch_size)
        return Trained(progress=Progress(), raw={}, ema={})

    monkeypatch.setattr(recipe, "train", trained)
    pretrain = dataclasses.replace(settings.teacher.pretrain, **how)
    settings = dataclasses.replace(settings, teacher=dataclasses.replace(settings.teacher, pretrain=pretrain))
    world = dataclasses.replace(recipe.init_distributed("cpu"), size=ranks)
    data = DOMAIN.data(settings, world, Path())
    recipe.pretrain(DOMAIN, settings, recipe.fresh_model(DOMAIN, settings, data, 0), data.source(0), world, Path())
    return given


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 6, 7])
def test_any_number_of_ranks_shares_a_teacher_s_batch(
    make: Callable[..., ToySettings], monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    """Evenly, by the fewest sequences more."""
    given = pretrained(make(), monkeypatch, ranks=ranks, batch_size=32)
    assert given["size"] == given["train"].micro_batch_size * ranks and 32 <= given["size"] < 32 + ranks


@pytest.mark.parametrize(
    ("said", "hardware", "taken"),
    [("auto", ["cpu"], "bfloat16"), ("auto", [], "same"), ("same", ["cpu"], "same"), ("bfloat16", [], "bfloat16")],
)
def test_a_teacher_s_products_are_in_bfloat16_where_that_is_said_or_the_hardware_has_it(
    make: Callable[..., ToySettings], monkeypatch: pytest.MonkeyPatch, said: str, hardware: list[str], taken: str
) -> None:
    monkeypatch.setattr(recipe, "has_bfloat16", lambda device: device.type in hardware)
    assert pretrained(make(), monkeypatch, matmul_dtype=said)["objective"].settings.matmul_dtype == taken


# Rounds


def rounds_of(make: Callable[..., ToySettings], *rounds: dict[str, Any]) -> tuple[ToySettings, list[ToySettings]]:
    said = tuple({f"{section}": "" for section in one} for one in rounds)
    chain = make(rounds=said)
    return chain, [
        make(f"run/round_{number}", **{"train": {"seed": number - 1, "steps": 2}, **one})
        for number, one in enumerate(rounds, 1)
    ]


ROUNDS: tuple[dict[str, Any], ...] = (
    {"objective": Mdlm()},
    {"objective": Sdtt(dt=0.125), "train": {"steps": 2, "seed": 1, "reset_optimizer": False}},
    {"objective": Sdtt(dt=0.25)},
    {"eval": {"skip": True}},
)


def with_raw(rounds: list[ToySettings]) -> list[ToySettings]:
    """The second round learns from the raw weights of the first."""
    rounds[1] = dataclasses.replace(rounds[1], teacher=dataclasses.replace(rounds[1].teacher, weights="raw"))
    return rounds


def test_each_round_learns_from_the_one_before(
    make: Callable[..., ToySettings], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings, rounds = rounds_of(make, *ROUNDS)
    folder = run(settings, with_raw(rounds))
    assert "the optimiser goes on from" in caplog.text
    steps = [folder / f"round_{number}" for number in range(1, 5)]
    assert [(one / "student_raw").exists() for one in steps] == [True, False, False, False], (
        "where the next round wants them"
    )
    assert not (steps[0] / "teacher").exists() and same(steps[1] / "teacher", steps[0] / "student_raw")
    assert same(steps[2] / "teacher", steps[1] / "student") and same(steps[3] / "teacher", steps[2] / "student")
    assert [(one / "report").exists() for one in steps] == [True, True, True, False]
    finished = FinishedRun.read(folder)
    assert list(finished.models) == ["mdlm", "sdtt-1", "sdtt-2", "likelihood"]
    rows = json.loads((folder / "report" / "toy.json").read_text())["rows"]
    assert list(dict.fromkeys(row["model"] for row in rows)) == list(finished.models)


def test_a_finished_round_is_passed_over_and_an_interrupted_one_resumes(
    make: Callable[..., ToySettings], killer: Callable[[int, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings, rounds = rounds_of(make, {"objective": Mdlm()}, {})
    killer(2 + 1, signal.SIGTERM)  # two updates of the first round, one of the second
    assert recipe.run(DOMAIN, settings, rounds) == 128 + signal.SIGTERM
    folder = run_dir(DOMAIN, settings)
    first = contents(folder / "round_1")
    caplog.clear()
    run(settings, rounds)
    assert "round 1 of 2: finished before" in caplog.text and "resumed from" in caplog.text
    assert contents(folder / "round_1") == first
    assert len(metrics(folder / "round_2")) == 2


def test_other_settings_of_a_finished_round_are_refused_before_anything_is_written(
    make: Callable[..., ToySettings],
) -> None:
    settings, rounds = rounds_of(make, {"objective": Mdlm()}, {})
    folder = run(settings, rounds)
    before = contents(folder)
    longer = [dataclasses.replace(one, train=dataclasses.replace(one.train, steps=3)) for one in rounds]
    with pytest.raises(ValueError, match=r"round_1 holds a run with other settings: train.steps=2 there, 3 here"):
        recipe.run(DOMAIN, settings, longer)
    elsewhere = [rounds[0], dataclasses.replace(rounds[1], run=RunConfig(dir="x"))]
    with pytest.raises(ValueError, match=r"rounds\[1\]: run.dir must be .*round_2, got 'x'"):
        recipe.run(DOMAIN, settings, elsewhere)
    assert contents(folder) == before


def test_a_round_that_names_its_teacher_keeps_it(make: Callable[..., ToySettings]) -> None:
    given = {"kind": "pretrained", "path": "a/b"}
    settings, rounds = rounds_of(make, {"objective": Mdlm()}, {"teacher": given}, {})
    paths = [recipe.linked(DOMAIN, settings, rounds, index).teacher.path for index in range(3)]
    assert paths == [None, "a/b", str(run_dir(DOMAIN, rounds[1]) / "student")]


def test_a_codebook_without_a_size_has_a_vector_for_each_lambda(make: Callable[..., ToySettings]) -> None:
    folder = run(make(mixture=CodesSettings(window=1), objective=Di4C(num_lambdas=3)))
    config = json.loads((folder / "student" / "config.json").read_text())
    assert config["mixture"]["codebook_size"] == 3


# Export


def test_a_student_of_a_given_teacher_is_exported_without_it_unless_merged(
    make: Callable[..., ToySettings], tmp_path: Path
) -> None:
    own = run(make("a"))
    given = {"kind": "pretrained", "path": str(own / "teacher")}
    head, merged = run(make("head", teacher=given)), run(make("merged", teacher=given, export="merged"))
    teacher = set(weights(head / "teacher"))
    assert not teacher & set(weights(head / "student")) and teacher < set(weights(merged / "student"))
    assert same(own / "student", merged / "student"), "what a run trained its teacher for is merged by default"
    moved = head.rename(tmp_path / "moved")
    found = [ToyModel.from_pretrained(folder / "student").sample(6, 2, seed=1) for folder in (moved, merged)]
    assert torch.equal(*found), "both load, wherever the run's folder is"


def test_a_students_teacher_is_the_one_that_it_was_trained_on(make: Callable[..., ToySettings], tmp_path: Path) -> None:
    given = {"kind": "pretrained", "path": str(run(make("a")) / "teacher")}
    folder, other = run(make("b", teacher=given)), run(make("c", teacher={"kind": "random"}))
    shutil.rmtree(folder / "teacher")
    shutil.copytree(other / "teacher", folder / "teacher")
    with pytest.raises(ValueError, match="fingerprint"):
        ToyModel.from_pretrained(folder / "student")
