"""The README: one screen, whose Python runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import di4c_lm
from di4c_lm.runs import train as training
from tests.test_api import TINY

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_it_has_at_most_500_words() -> None:
    assert len(README.split()) <= 500


def test_it_begins_with_a_sentence_and_a_picture() -> None:
    assert re.match(r"# di4c-lm\n\n[^\n]+\.\n\n!\[[^\]]+\]\(docs/assets/\w+\.svg\)\n", README)


def test_its_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    rows = [{"text": f"Once upon a time {i}: " + " ".join(str(i * k % 97) for k in range(1, 40))} for i in range(200)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DI4C_CACHE", str(tmp_path / "cache"))

    def small(settings: dict[str, Any], **more: Any) -> Path:
        return training.train({**TINY, **settings, "train.steps": 2}, **more)

    monkeypatch.setattr(di4c_lm, "train", small, raising=False)
    exec(code, {})
    shown = capsys.readouterr().out
    assert shown.count("Once") >= 4 and "tensor([-" in shown


def test_its_install_commands_name_extras_that_there_are() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r"-e \"\.\[(\w+)\]\"", README)
    assert set(named) == {"train", "test"} and all(f"\n{name} = [" in project for name in named)
