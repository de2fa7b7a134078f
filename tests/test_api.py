"""The public face: `load`, `train`, `evaluate`, their examples, and what they say of bad input."""

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import di4c_lm
from di4c_lm.domains import load as loading
from di4c_lm.domains.text import model as text
from di4c_lm.runs import evaluate, train

TINY = {
    "data.length": 16,
    "data.vocab_size": 300,
    "model.hidden_size": 16,
    "model.num_blocks": 2,
    "model.num_heads": 2,
    "model.cond_dim": 8,
    "mixture.codebook_size": 8,
    "teacher.pretrain.steps": 4,
    "teacher.pretrain.batch_size": 4,
    "evaluator.hidden_size": 16,
    "evaluator.num_blocks": 1,
    "evaluator.num_heads": 2,
    "evaluator.pretrain.steps": 4,
    "train.micro_batch_size": 2,
    "eval.steps": [1, 2],
    "eval.num_samples": 8,
    "eval.bootstrap": 50,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run: `stories.jsonl`, and `outputs/stories`, a finished run on it."""
    folder = tmp_path_factory.mktemp("api")
    rows = [{"text": f"Once upon a time {i}: " + " ".join(str(i * k % 97) for k in range(1, 40))} for i in range(200)]
    (folder / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("DI4C_CACHE", str(folder / "cache"))
        run = di4c_lm.train({**TINY, "train.steps": 2, "run.name": "stories"}, data="stories.jsonl")
    assert run == Path("outputs/stories")
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DI4C_CACHE", str(folder / "cache"))


def examples() -> list[doctest.DocTest]:
    finder, known = doctest.DocTestFinder(recurse=True), {"di4c_lm": di4c_lm}
    found = [test for module in (loading, train, evaluate, text) for test in finder.find(module, globs=known)]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_each_example_says_what_it_shows(example: doctest.DocTest) -> None:
    lines: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(example, out=lines.append)
    assert runner.failures == 0, "".join(lines)


def test_each_public_function_has_an_example() -> None:
    named = {test.name.rpartition(".")[2] for test in examples()}
    assert {"load", "train", "evaluate", "sample", "encode"} <= named


def test_there_is_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = di4c_lm.lode  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: di4c_lm.load("outputs/nonesuch"), "outputs/nonesuch: expected a file, a folder or a hub name"),
        (lambda: di4c_lm.load("outputs/stories", which="pupil"), "which must be one of teacher, student, got 'pupil'"),
        (lambda: di4c_lm.load("outputs/stories/student", which="teacher"), "which must be student where"),
        (lambda: di4c_lm.load("outputs/stories/student", codec="x"), "codec must be left out for a model of text"),
        (lambda: di4c_lm.train({"train.step": 2}), "there is no key train.step"),
        (lambda: di4c_lm.train({"train.steps": "two"}), "train.steps must be a whole number, got 'two'"),
        (lambda: di4c_lm.train(domain="music"), "domain must be one of text, cifar10, imagenet, got 'music'"),
        (lambda: di4c_lm.evaluate("outputs/stories", steps=[0]), "steps must be one or more distinct numbers"),
        (
            lambda: di4c_lm.evaluate("outputs/stories", what="taste"),
            "what must be one of gen_ppl, responses, report, harness, images",
        ),
        (lambda: di4c_lm.evaluate("outputs"), "expected the folder of a finished run"),
    ],
)
def test_bad_input_is_named(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_a_checkpoint_without_a_tokenizer_takes_one(folder: Path, tmp_path: Path) -> None:
    from di4c_lm.runs.convert import main

    assert main([f"source={folder / 'outputs/stories/teacher'}", f"target={tmp_path / 'mdlm'}", "to=mdlm"]) == 0
    with pytest.raises(ValueError, match="tokenizer must be a folder, file or hub name, since .* comes without one"):
        di4c_lm.load(tmp_path / "mdlm")
    there = di4c_lm.load(tmp_path / "mdlm", tokenizer=str(folder / "outputs/stories/teacher"))
    here = di4c_lm.load(folder / "outputs/stories", which="teacher")
    assert there.sample(2, steps=2) == here.sample(2, steps=2)


def test_loading_and_sampling_take_the_plain_install_alone(folder: Path) -> None:
    code = (
        "import sys\n"
        "blocked = {'deepspeed', 'datasets', 'wandb', 'matplotlib', 'scipy', 'sklearn', 'mauve', 'nltk', 'torchvision'}\n"
        "for name in blocked: sys.modules[name] = None\n"
        "import di4c_lm\n"
        "model = di4c_lm.load('outputs/stories')\n"
        "assert len(model.sample(2, steps=2)) == 2\n"
        "x = model.encode('Once')\n"
        "assert model.logits(x).shape[:2] == x.shape and model.log_prob(x).shape == (1,)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
