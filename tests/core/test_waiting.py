"""Threads sleep where the machine is busy, and nobody has said otherwise."""

import os

import pytest

from di4c_lm import __main__
from di4c_lm.core.waiting import wait_by_load

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.mark.parametrize(
    ("load", "said", "policy"),
    [
        (1.0, {}, "PASSIVE"),
        (0.1, {}, None),
        (1.0, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        (1.0, {"GOMP_SPINCOUNT": "1000"}, None),
    ],
)
def test_threads_sleep_beside_others(
    monkeypatch: pytest.MonkeyPatch, load: float, said: dict[str, str], policy: str | None
) -> None:
    monkeypatch.setattr(os, "environ", {**{k: v for k, v in os.environ.items() if k not in NAMES}, **said})
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    wait_by_load()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_the_command_says_so_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Module:
        @staticmethod
        def main(_: object) -> int:
            said.append("ran")
            return 0

    monkeypatch.setattr(__main__, "wait_by_load", lambda: said.append("waits"))
    monkeypatch.setattr(__main__, "import_module", lambda _: said.append("loaded") or Module)
    assert __main__.main(["doctor"]) == 0
    assert said == ["waits", "loaded", "ran"]
