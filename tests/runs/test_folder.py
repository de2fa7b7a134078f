"""The folder of a run: its name, what it refuses, and that it is left as it is where it does."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from di4c_lm.core.files import lock
from di4c_lm.runs import recipe
from di4c_lm.runs.folder import located, run_dir
from di4c_lm.training.settings import RunConfig
from tests.domains.toy import DOMAIN, ToySettings
from tests.runs.helpers import contents, metrics, run


def test_a_folder_of_other_settings_is_refused_by_the_keys_and_left_as_it_is(make: Callable[..., ToySettings]) -> None:
    folder = run(make())
    before = contents(folder)
    with pytest.raises(
        ValueError, match=r"other settings: optim.lr=0.01 there, 0.02 here; train.seed=0 there, 1 here\."
    ):
        recipe.run(DOMAIN, make(optim={"lr": 0.02}, train={"seed": 1, "log_every": 3}))
    with pytest.raises(ValueError, match="train.steps must be at least 4, where the run in .* stands, got 2"):
        recipe.run(DOMAIN, make(train={"steps": 2}))
    assert contents(folder) == before


def test_a_run_may_be_made_longer(make: Callable[..., ToySettings]) -> None:
    folder = run(make(train={"steps": 2}))
    assert len(metrics(run(make()))) == 4
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["steps"] == 4


WATCHING = {
    "zero": {"stage": 2},
    "wandb": {"project": "other"},
    "tensorboard": {"enabled": True},
    "eval": {"num_samples": 3},
    "train": {
        "steps": 6,
        "save_every": 1,
        "keep_checkpoints": 5,
        "log_every": 2,
        "max_bad_steps": 3,
        "rank_timeout_s": 30,
        "resume": "must",
    },
    "decoding": {"temperature": 0.5},
    "export": "merged",
}


def test_what_may_change_when_a_run_goes_on(make: Callable[..., ToySettings]) -> None:
    """Each of these at once; the names of the keys stand in docs/how_to/resume.md."""
    folder = run(make())
    watching = {key: value for key, value in WATCHING.items() if key not in ("eval", "wandb")}
    assert run(make(**watching)) == folder and len(metrics(folder)) >= 4
    text = (Path(__file__).parents[2] / "docs" / "how_to" / "resume.md").read_text(encoding="utf-8")
    assert all(key in text for key in (*WATCHING, *WATCHING["train"]))


def test_paths_are_kept_so_that_a_run_is_measured_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "c,d.jsonl"):
        (tmp_path / name).write_text("")
    plain = {
        "data": {"path": "a.jsonl,b.jsonl", "length": 3},
        "teacher": {"path": "owner/model"},
        "x": {"path": "c,d.jsonl"},
    }
    assert located(plain) == {
        "data": {"path": f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl", "length": 3},
        "teacher": {"path": "owner/model"},
        "x": {"path": f"{tmp_path}/c,d.jsonl"},
    }
    assert located(located(plain)) == located(plain)


def test_a_folder_in_which_nothing_was_trained_takes_other_settings(make: Callable[..., ToySettings]) -> None:
    with pytest.raises(ValueError, match="/nowhere"):
        recipe.run(DOMAIN, make(teacher={"kind": "pretrained", "path": "/nowhere"}))
    run(make())


def test_two_runs_do_not_share_a_folder(make: Callable[..., ToySettings], tmp_path: Path) -> None:
    with lock(tmp_path / "run" / ".lock", "training something"), pytest.raises(ValueError, match="training something"):
        recipe.run(DOMAIN, make())
    assert [path.name for path in (tmp_path / "run").iterdir()] == []
    run(make())


def test_a_folder_that_cannot_be_written_is_named(make: Callable[..., ToySettings], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="run.dir: .*file/run cannot be a folder: .*file is a file"):
        recipe.run(DOMAIN, make("file/run"))


def test_the_folders_name_is_the_runs_or_a_hash_of_what_shapes_it() -> None:
    def name(**sections: Any) -> Path:
        return run_dir(DOMAIN, dataclasses.replace(ToySettings(), **sections))

    base = ToySettings()
    assert name(run=RunConfig(name="mine")) == Path("outputs/mine")
    assert name(run=RunConfig(dir="/x/y")) == Path("/x/y")
    unnamed = name()
    assert unnamed.parent == Path("outputs") and unnamed.name.startswith("toy-")
    assert (
        name(train=dataclasses.replace(base.train, log_every=3), eval=dataclasses.replace(base.eval, skip=True))
        == unnamed
    )
    assert name(train=dataclasses.replace(base.train, steps=3)) == unnamed, "made longer it is the same run"
    assert name(train=dataclasses.replace(base.train, seed=3)) != unnamed
