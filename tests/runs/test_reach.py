"""How many files of the package an update of text, and a step of its sampling, run through: few, so that they can be read."""

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import di4c_lm
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.model import TextModel
from di4c_lm.runs import recipe
from di4c_lm.runs.folder import parse_run
from di4c_lm.training import loop
from tests.runs.test_traces import ALL, TINY, corpus

PACKAGE = str(Path(di4c_lm.__path__[0])) + os.sep
MOST = {
    "copula": (14, 12),
    "sequential": (16, 11),
}  # files of an update, and of a step: the class chain's chain and output heads are two; the second has Muon's beside AdamW's


class Files:
    """The package's files whose functions are called between `start` and `stop`."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def _take(self, frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self.found.add(frame.f_code.co_filename.removeprefix(PACKAGE))

    def start(self) -> None:
        threading.setprofile(self._take)
        sys.setprofile(self._take)

    def stop(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.fixture(scope="module", params=MOST)
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Files, Files]:
    """A recipe, what the third update of a tiny run of it goes through, and one step of sampling its student."""
    folder, update, step = tmp_path_factory.mktemp("reach"), Files(), Files()
    made, calls = loop.update, 0

    def third(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != 3:
            return made(*arguments)
        update.start()
        try:
            return made(*arguments)
        finally:
            update.stop()

    plain = [word for word in ALL.split() if not word.startswith("teacher.")]
    words = [f"recipe={request.param}", "teacher=random", corpus(folder / "docs.jsonl"), *TINY["text"].split(), *plain]
    settings, rounds = parse_run(
        DOMAIN, [*words, f"run.dir={folder / 'run'}", f"run.cache_dir={folder / 'cache'}"], program="test"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "update", third)
        assert recipe.run(DOMAIN, settings, rounds) == 0
    model = TextModel.from_pretrained(folder / "run" / "student")
    model.sample_tokens(4, 2, seed=0, on_step=between(step))
    return request.param, update, step


def between(step: Files) -> Callable[[Any], None]:
    """From the first call of what this returns to the second."""
    shown = 0

    def on_step(_: Any) -> None:
        nonlocal shown
        step.stop()
        shown += 1
        if shown == 1:
            step.start()

    return on_step


def test_an_update_runs_through_few_files(traced: tuple[str, Files, Files]) -> None:
    recipe, update, _ = traced
    assert 6 < len(update.found) <= MOST[recipe][0], sorted(update.found)


def test_a_step_of_sampling_runs_through_few_files(traced: tuple[str, Files, Files]) -> None:
    recipe, _, step = traced
    assert 5 < len(step.found) <= MOST[recipe][1], sorted(step.found)
