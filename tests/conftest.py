"""One thread a process, and caches of their own, for every test and what it starts."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is taken from, or left in, the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DI4C_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def shared() -> Path:
    """The folder of golden arrays and real text; a test that needs it is skipped where it is absent."""
    folder = os.environ.get("DI4C_SHARED")
    if not folder or not Path(folder).is_dir():
        pytest.skip("the environment variable DI4C_SHARED names no folder of golden arrays and real text")
    return Path(folder)


@pytest.fixture(autouse=True)
def hub_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that finds no hub has the process ask its cache alone; the next begins as this one did."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", constants.HF_HUB_OFFLINE)
