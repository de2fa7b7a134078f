"""What is told of a run before anything is read or built."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from di4c_lm.runs import recipe
from di4c_lm.runs.preflight import check_all, checks, faults
from tests.domains.toy import DOMAIN, ToySettings
from tests.runs.helpers import contents, run


def test_a_run_that_can_go_has_no_fault(make: Callable[..., ToySettings]) -> None:
    assert faults(DOMAIN, make("a")) == []
    assert {"run.device", "run.dir", "run.cache_dir", "zero.config", "wandb.mode", "model.attention"} <= {
        *checks(DOMAIN, make("a"))
    }


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"train": {"resume": "must"}}, "train.resume must be auto or never"),
        ({"zero": {"config": "nowhere.json"}}, "zero.config='nowhere.json' cannot be read"),
        ({"model": {"attention": "flash"}}, "model.attention must be auto or sdpa without"),
        ({"wandb": {"mode": "online"}}, "wandb.mode must be offline or disabled where there is no key"),
    ],
)
def test_each_fault_is_found_and_nothing_is_written(
    make: Callable[..., ToySettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, dict[str, object]],
    message: str,
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    settings = make("a", **sections)
    assert any(message in fault for fault in faults(DOMAIN, settings))
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message.split("=")[0]):
        recipe.run(DOMAIN, settings)
    assert contents(tmp_path) == before


def test_all_faults_are_told_at_once(make: Callable[..., ToySettings]) -> None:
    settings = make("a", train={"resume": "must"}, zero={"config": "nowhere.json"})
    assert len(faults(DOMAIN, settings)) == 2
    check_all(DOMAIN, settings, skip=("run.dir", "zero.config"))


def test_a_finished_run_that_shall_not_resume_is_left_as_it_is(make: Callable[..., ToySettings]) -> None:
    folder = run(make("a"))
    before = contents(folder)
    with pytest.raises(ValueError, match="train.resume must be auto or must"):
        recipe.run(DOMAIN, make("a", train={"resume": "never"}))
    assert contents(folder) == before


def test_settings_that_are_no_mapping_are_named(make: Callable[..., ToySettings]) -> None:
    folder = run(make("a"))
    for content in ("- 1\n", "train: [\n", json.dumps({"train": {"stepps": 1}})):
        (folder / "config.yaml").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"config\.yaml: not the settings of a run on toy"):
            recipe.run(DOMAIN, make("a"))
