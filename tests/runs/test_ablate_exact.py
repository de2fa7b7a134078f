"""Studies of an exact teacher: their rows, the last line of `--json`, and what bad input gets."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from di4c_lm.core.compose import CONFIGS
from di4c_lm.networks.exact import ExactDenoiser, Posterior
from di4c_lm.runs.ablate.ablate import Settings, main
from di4c_lm.runs.ablate.quality import rows_of
from di4c_lm.runs.ablate.run import ExactModel
from tests.tools.helpers import run_tool

BASE = [
    "model.hidden_size=64",
    "model.num_blocks=1",
    "train.micro_batch_size=4",
    "train.save_every=0",
    "train.steps=2",
    "eval.num_samples=40",
    "eval.steps=[1,2]",
]
CHARACTERS: dict[str, Any] = {
    "source": {"kind": "characters", "order": 2, "length": 8},
    "teacher": "exact",
    "sequences": 50,
    "base": BASE,
    "recipe": "class_chain",
    "settings": {"class_chain": ["recipe=copula", "mixture.codebook_size=4"], "codes": ["recipe=di4c"]},
}
LISTS = CHARACTERS | {
    "source": {"kind": "lists", "operations": ["copy", "shuffle"], "items": 4, "list_length": 3},
    "settings": {"class_chain": ["recipe=copula", "mixture.codebook_size=4"]},
}


def written(path: Path, study: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{word} the cat sat on a mat" * 5}) for word in ("now", "then")))
    return path


def test_the_last_line_has_a_row_each_model_and_number_of_steps(tmp_path: Path, text: Path) -> None:
    study = written(tmp_path / "tiny.yaml", CHARACTERS)
    done = run_tool(
        "ablate",
        f"study={study}",
        f"data={text}",
        "settings=[class_chain]",
        "seeds=[0]",
        f"out={tmp_path / 'out'}",
        "--json",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert [(row["model"], row["steps"], row["seed"]) for row in rows] == [
        (model, steps, 0) for model in ("teacher", "class_chain") for steps in (1, 2)
    ]
    assert set(rows[0]) == {"model", "steps", "nll", "factorisation_nats", "factorisation_se", "seed"}
    teacher, chain = rows[0], rows[2]
    assert teacher["factorisation_nats"] > 10 * teacher["factorisation_se"] > 0 and teacher["nll"] > 0
    assert chain["factorisation_nats"] < teacher["factorisation_nats"]  # what is counted says something already


def test_lists_have_a_row_each_operation_and_their_bound(tmp_path: Path) -> None:
    study = written(tmp_path / "tiny.yaml", LISTS)
    done = run_tool("ablate", f"study={study}", "seeds=[0]", f"out={tmp_path / 'out'}", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    found = {(row["model"], row["operation"], row["steps"]): row for row in rows}
    assert set(found) == {
        (model, operation, steps)
        for operation in ("copy", "shuffle")
        for model, counts in (("bound", (1,)), ("teacher", (1, 2)), ("class_chain", (1, 2)))
        for steps in counts
    }
    assert found["teacher", "copy", 1]["accuracy"] == 1 and found["teacher", "shuffle", 1]["accuracy"] < 0.6
    assert found["bound", "shuffle", 1]["accuracy"] == pytest.approx(6 / 27)
    at_one = found["teacher", "shuffle", 1]["factorisation_nats"]
    assert at_one == pytest.approx(found["bound", "shuffle", 1]["factorisation_nats"], abs=1e-5)
    assert "| shuffle: class_chain |" in done.stdout


@pytest.mark.parametrize(
    "study, arguments, message",
    [
        (
            CHARACTERS | {"source": {"kind": "characters", "order": 7, "length": 8}},
            [],
            "source.order must be a whole number from 2 to 5, got 7",
        ),
        (
            CHARACTERS | {"source": {"kind": "characters", "order": 4, "length": 3}},
            [],
            "length must be at least the order, 4, got 3",
        ),
        (CHARACTERS, ["settings=[best]"], "settings must be among class_chain, codes, got 'best'"),
        (CHARACTERS, ["data=/nowhere.jsonl"], "/nowhere.jsonl"),
        (CHARACTERS, ["evaluator=smollm2"], "evaluator must be left out"),
        (CHARACTERS, ["teacher=/some/folder"], "teacher must be left out"),
        (
            CHARACTERS | {"base": [*CHARACTERS["base"], "sampler=confidence"]},
            [],
            "sampler must be ancestral or left_to_right where the",
        ),
        (CHARACTERS | {"teacher": "best"}, [], "teacher must be one of train, exact, got 'best'"),
        (LISTS, ["data=text.jsonl"], "data must be left out where study="),
        (LISTS, ["teacher=train"], "teacher must be exact where source.kind=lists"),
        (LISTS | {"source": LISTS["source"] | {"operations": ["sort"]}}, [], "source.operations must be among copy"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    study: dict[str, Any],
    arguments: list[str],
    message: str,
) -> None:
    if study["source"]["kind"] == "characters" and not any(one.startswith("data=") for one in arguments):
        arguments = [*arguments, f"data={text}"]
    path = written(tmp_path / "tiny.yaml", study)
    with pytest.raises(SystemExit, match="2"):
        main([f"study={path}", "seeds=[0]", f"out={tmp_path / 'out'}", *arguments])
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert message in said


@pytest.mark.parametrize("kind", ["markov", "hidden_markov"])
def test_any_study_with_a_source_can_have_its_exact_teacher(tmp_path: Path, kind: str) -> None:
    hidden = {"num_hidden": 3} if kind == "hidden_markov" else {}
    source = {"kind": kind, "num_states": 3, "length": 4, "sharpness": 4.0, "seed": 0, **hidden}
    trained = {key: value for key, value in CHARACTERS.items() if key != "teacher"} | {"source": source}
    path = str(written(tmp_path / "tiny.yaml", trained))
    assert not Settings(study=path).studied().is_exact
    study = Settings(study=path, teacher="exact").studied()
    assert study.is_exact and Settings(teacher="exact").teachers == ()
    config, posterior = study.config(None, 0), Posterior(study.distribution())
    model = ExactModel(denoiser=ExactDenoiser(config.model, posterior=posterior))
    rows = rows_of("teacher", model, study.distribution(), config, exact=True)
    assert [row["steps"] for row in rows] == [1, 2] and rows[0]["factorisation_nats"] > 0


def test_data_without_letters_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "digits.jsonl"
    path.write_text(json.dumps({"text": "12 34"}))
    study = written(tmp_path / "tiny.yaml", CHARACTERS)
    with pytest.raises(SystemExit, match="2"):
        main([f"study={study}", f"data={path}", f"out={tmp_path / 'out'}"])
    assert "data must be text with more than 2 characters from a to z" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["exact_characters", "lists"])
def test_the_studies_have_every_kind_of_mixture(name: str) -> None:
    study = yaml.safe_load((CONFIGS / "study" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert set(study["settings"]) == {"class_chain", "codes", "sequential", "token", "adaln"}
    assert study["teacher"] == "exact"
