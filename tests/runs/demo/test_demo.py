"""The demo's command: the models that it finds, and what ends it."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from di4c_lm.core.compose import compose
from di4c_lm.core.files import write_json
from di4c_lm.domains.codes.domain import CodeModel
from di4c_lm.domains.domain import SETTINGS
from di4c_lm.domains.text.model import TextModel
from di4c_lm.runs.demo import demo
from di4c_lm.runs.demo.demo import Settings, facts_of, load_models


@pytest.fixture(scope="module")
def run(texts: dict[str, TextModel], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    for name, model in texts.items():
        model.save_pretrained(folder / name)
    (folder / SETTINGS).write_text("{}\n")
    write_json(folder / "parts.json", {"domain": "text", "models": {name: name for name in texts}})
    return folder


def test_of_a_run_all_models_are_shown_and_others_by_their_names(run: Path) -> None:
    said = [f"model={run}", f"models=[{run / 'teacher'}/../student,again={run},third={run / 'teacher'}]"]
    with pytest.raises(ValueError, match="models must be said as <name>=.*, with another name than student"):
        load_models(compose(Settings, said))
    found = load_models(compose(Settings, [f"model={run}", f"models=[again={run},third={run / 'teacher'}]"]))
    assert list(found) == ["teacher", "student", "again", "third"]
    assert found["again"].sample(steps=2) == found["student"].sample(steps=2) != found["teacher"].sample(steps=2)
    assert list(load_models(compose(Settings, [f"model={run / 'teacher'}"]))) == ["teacher"]


def test_text_and_images_do_not_go_together(run: Path, codes: CodeModel, tmp_path: Path) -> None:
    codes.save_pretrained(tmp_path / "codes")
    with pytest.raises(ValueError, match="models must be all of text or all of images"):
        load_models(compose(Settings, [f"model={run}", f"models=[{tmp_path / 'codes'}]"]))


def test_the_page_begins_with_what_the_command_says(texts: dict[str, TextModel]) -> None:
    said = ["steps=3", "sampler=remasking", "sampler.eta=0.1", "prompt=the cat", "grid=[1,0.5,0]"]
    begin = facts_of(texts, compose(Settings, said))["begin"]
    wanted = {"steps": "3", "sampler": "remasking", "sampler.eta": "0.1", "prompt": "the cat", "grid": "[1.0,0.5,0.0]"}
    assert wanted.items() <= begin.items()


@pytest.mark.parametrize(
    "words, message",
    [
        (["model=nowhere/at/all"], "nowhere"),
        (["outputs=nowhere"], "outputs='nowhere' holds no finished run"),
        (["steps=0"], "steps must be at least 1, got 0"),
        (["temperature=-1"], "temperature must be at least 0, got -1.0"),
        (["sampler=gibbs"], "sampler must be one of ancestral"),
        (["port=70000"], "port must be in [0, 65535], got 70000"),
        (["hybrid_last=2"], "hybrid_last must be left out on the page"),
        (["device=tpu"], "device must be one of auto, cpu, cuda"),
    ],
)
def test_bad_input_ends_with_status_2(capsys: pytest.CaptureFixture, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_taken_port_is_named_with_a_free_one(capsys: pytest.CaptureFixture, run: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            demo.main([f"model={run}", f"port={port}"])
    assert ended.value.code == 2
    assert re.search(rf"port={port} is taken, .*: say port=\d+, which is free", capsys.readouterr().err)


def test_without_its_extra_the_command_says_what_brings_it(capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        demo.main([])
    assert ended.value.code == 2
    assert "uvicorn is not installed: the extra [demo] of di4c-lm brings it" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(run: Path) -> None:
    command = [sys.executable, "-m", "di4c_lm", "demo", f"model={run}", "port=0", "device=cpu"]
    env = {**os.environ, "PYTHONPATH": str(Path(demo.__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.match(r"teacher, student: (http://127\.0\.0\.1:\d+) ", line)
        assert found, line + process.stderr.read()
        with urllib.request.urlopen(found[1]) as answer:
            assert b"<title>di4c-lm demo</title>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
