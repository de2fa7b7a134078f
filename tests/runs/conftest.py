"""Settings of runs of the toy domain."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.domains.domain import DOMAINS
from di4c_lm.training.settings import RunConfig
from tests.domains.toy import ToySettings


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOMAINS, "toy", "tests.domains.toy")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ToySettings]:
    """Settings of a run in the folder `name`, with other values of sections' keys: `train={"steps": 2}`."""

    def settings(name: str = "run", cache: str = "cache", **sections: Any) -> ToySettings:
        place = RunConfig(dir=str(tmp_path / name), cache_dir=str(tmp_path / cache), device="cpu", threads=1)
        base = ToySettings(run=place)
        changed = {
            key: dataclasses.replace(getattr(base, key), **value) if isinstance(value, dict) else value
            for key, value in sections.items()
        }
        return dataclasses.replace(base, **changed)

    return settings
