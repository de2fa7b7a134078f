"""A chain of rounds as a user starts it, in miniature: its folders, its table, its resuming, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from di4c_lm.domains.text.likelihood import held_out_bound

from di4c_lm.core import cli
from di4c_lm.domains.text.model import TextModel, load_run
from di4c_lm.domains.text.settings import Config
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.sdtt import Sdtt
from di4c_lm.runs.rounds import is_finished, linked, names

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
TINY = [
    "model.hidden_size=16",
    "model.num_blocks=3",
    "model.num_heads=2",
    "model.cond_dim=8",
    "data.length=16",
    "data.vocab_size=300",
    "lambda.codebook_size=4",
    "evaluator.hidden_size=16",
    "evaluator.num_blocks=1",
    "evaluator.num_heads=2",
    "evaluator.pretrain.steps=4",
    "train.micro_batch_size=2",
    "train.log_every=1",
    "train.steps=2",
    "eval.steps=[1,2]",
    "eval.num_samples=4",
    "eval.bootstrap=20",
]
ROUNDS = (
    "rounds=["
    "{objective:mdlm,objective.bound_draws:2},"
    "{objective:sdtt,objective.dt:0.125,teacher.weights:raw,train.reset_optimizer:false,eval.skip:true},"
    "{objective:sdtt,objective.divergence:mse,eval.skip:true},"
    "{objective:likelihood,objective.num_lambdas:4,eval.skip:true},"
    "{objective:likelihood,eval.skip:true}]"
)


def chain(*words: str) -> tuple[Config, list[Config]]:
    config = cli.load(words, CONFIGS, "train_lm")
    return config, cli.load_rounds(config, words, CONFIGS, "train_lm")


def launch(text: Path, run_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch/train_lm.py", f"data={text}", *TINY, f"run.dir={run_dir}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "docs.jsonl"
    rows = [{"text": f"document {i}: " + " ".join(str(i * k % 97) for k in range(1, 40))} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a chain of five rounds: MDLM, SDTT twice, Di4C twice."""
    run_dir = tmp_path_factory.mktemp("runs") / "chain"
    done = launch(text, run_dir, ROUNDS)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "the optimiser goes on from" in done.stderr
    return run_dir


def test_each_round_has_its_folder_and_the_chain_its_table(finished: Path) -> None:
    report = json.loads((finished / "report" / "gen_ppl.json").read_text())
    models = ["mdlm", "sdtt-1", "sdtt-2", "di4c-1", "di4c-2"]
    assert list(dict.fromkeys(row["model"] for row in report["rows"])) == ["data", *models]
    assert set(report["manifest"]["checkpoints"]) == set(models)
    for number in range(1, 6):
        folder = finished / f"round_{number}"
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
        assert (folder / "student" / "model.safetensors").exists()
        assert (folder / "student_raw").exists() == (number == 1), (
            "raw weights are kept where the next round wants them"
        )


def test_each_round_learns_from_the_one_before(finished: Path) -> None:
    settings = [yaml.safe_load((finished / f"round_{n}" / "config.yaml").read_text()) for n in range(1, 6)]
    assert [s["teacher"]["path"] for s in settings[1:]] == [
        str(finished / "round_1" / "student_raw"),
        *(str(finished / f"round_{n}" / "student") for n in (2, 3, 4)),
    ]
    steps = [s["objective"]["dt"] * 2 ** (s["objective"]["round"] - 1) for s in settings[1:3]]
    assert steps == [0.125, 0.25], "SDTT doubles its step"
    assert [s["objective"]["num_lambdas"] for s in settings[3:]] == [4, 4]
    assert [s["train"]["seed"] for s in settings] == [0, 1, 2, 3, 4]
    first = TextModel.from_pretrained(finished / "round_1" / "student_raw").denoiser.state_dict()
    teacher = load_run(finished / "round_2").teacher.denoiser.state_dict()
    assert all(torch.equal(first[name], teacher[name]) for name in first)
    counts = [
        json.loads((finished / f"round_{n}" / "checkpoints" / "step_00000002" / "rank_00000.json").read_text())
        for n in (1, 2, 3)
    ]
    assert [count["engine"]["adam_steps"] for count in counts] == [2, 4, 2], "only the second round keeps the optimiser"
    mixture = load_run(finished / "round_5").teacher
    assert mixture.denoiser.latent is not None, "the second round of Di4C has a mixture for teacher"


def test_the_bound_on_held_out_text_is_reported(finished: Path) -> None:
    (row,) = json.loads((finished / "round_1" / "report" / "bound.json").read_text())["rows"]
    assert row["bound_ppl_low"] <= row["bound_ppl"] <= row["bound_ppl_high"]
    assert 20 < row["bound_ppl"] < 2000, "an untrained model of 300 tokens is near 300"
    run = load_run(finished / "round_1")
    bound = held_out_bound(run.student, run.validation[:5], draws=3, seed=0, batch_size=5)
    parts = held_out_bound(run.student, run.validation[:5], draws=3, seed=0, batch_size=2)
    torch.testing.assert_close(bound, parts)
    with pytest.raises(ValueError, match="mixture"):
        held_out_bound(load_run(finished / "round_5").student, run.validation[:5], draws=1, seed=0)


def test_a_finished_chain_does_nothing_twice_and_other_settings_are_refused(finished: Path, text: Path) -> None:
    before = (finished / "round_3" / "student" / "model.safetensors").stat().st_mtime_ns
    cut = finished / "round_5" / "student"
    whole = TextModel.from_pretrained(cut).denoiser.state_dict()
    shutil.rmtree(cut)
    done = launch(text, finished, ROUNDS, "eval.skip=true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("finished before") == 4
    again = TextModel.from_pretrained(cut).denoiser.state_dict()
    assert all(torch.equal(again[name], whole[name]) for name in whole), "a round that was cut goes on"
    assert (finished / "round_3" / "student" / "model.safetensors").stat().st_mtime_ns == before
    refused = launch(text, finished, ROUNDS, "optim.lr=0.01")
    assert refused.returncode == 2
    assert "other settings" in refused.stderr


def test_models_are_compared_by_one_command(finished: Path, tmp_path: Path) -> None:
    models = f"models=[a={finished / 'round_1'},{finished / 'round_5' / 'student'}]"
    words = [f"run={finished}", models, "steps=[1]", "num_samples=4", "bootstrap=20", f"report={tmp_path}"]
    subprocess.run([sys.executable, "eval/compare.py", *words], cwd=ROOT, check=True, capture_output=True)
    rows = json.loads((tmp_path / "gen_ppl.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["data", "a", "student"]


def test_sdtt_refuses_a_mixture_for_teacher(finished: Path, text: Path, tmp_path: Path) -> None:
    done = launch(text, tmp_path, "objective=sdtt", f"teacher={finished / 'round_5' / 'student'}", "eval.skip=true")
    assert done.returncode == 2
    assert "objective must be likelihood or di4c where the teacher is a mixture" in done.stderr


def test_the_chains_that_are_shipped_say_what_their_names_say() -> None:
    _, sdtt = chain("experiment=chain_sdtt", "run.dir=x")
    assert names(sdtt) == ["mdlm", "sdtt-1", "sdtt-2", "sdtt-3", "likelihood"]
    assert [one.objective.step for one in sdtt if isinstance(one.objective, Sdtt)] == [1 / 32, 1 / 16, 1 / 8]
    config, di4c = chain("experiment=chain_di4c", "run.dir=x", "train.seed=5")
    assert names(di4c) == ["mdlm", "likelihood-1", "likelihood-2"]
    assert [one.train.seed for one in di4c] == [5, 6, 7]
    assert linked(config, di4c, 2).teacher.path == "x/round_2/student"
    assert isinstance(di4c[0].objective, Mdlm)
    assert isinstance(di4c[1].objective, Likelihood)
    assert all(one.rounds == () for one in di4c)
    _, paper = chain("experiment=paper_sdtt", "run.dir=x")
    assert [one.objective.step for one in paper if isinstance(one.objective, Sdtt)] == [2**k / 1024 for k in range(7)]
    assert [one.teacher.weights for one in paper] == ["ema"] + 6 * ["raw"]
    assert (paper[0].teacher.path, paper[0].data.dataset) == ("kuleshov-group/mdlm-owt", "Skylion007/openwebtext")


def test_words_of_the_command_line_reach_all_rounds_and_give_way_to_theirs() -> None:
    config, rounds = chain(
        "train.steps=9", "run.dir=x", "rounds=[{objective:mdlm,train.steps:3},{objective:sdtt,teacher:a/b}]"
    )
    assert [one.train.steps for one in rounds] == [3, 9]
    assert linked(config, rounds, 1).teacher.path == "a/b", "a teacher that is named is kept"
    assert not is_finished(rounds[0])


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ("[{objective:sdtt,train.stepz:3}]", "rounds[0]: unknown key 'train.stepz'"),
        (
            "[{objective:mdlm},{objective:sdtt,objective.num_lambdas:3}]",
            "rounds[1]: unknown key 'objective.num_lambdas'",
        ),
        (
            "[{objective:sdtt,objective.dt:0.5},{objective:sdtt}]",
            "rounds[1]: objective.dt * growth^(round - 1) must be at most",
        ),
        (
            "[{objective:di5c}]",
            "rounds[0]: objective='di5c' is impossible: allowed are di4c, di4c_codes, di4c_paper, likelihood, mdlm, sdtt",
        ),
    ],
)
def test_a_wrong_round_is_named_before_anything_is_loaded(rounds: str, said: str) -> None:
    with pytest.raises(ValueError, match="(?s).") as caught:
        chain(f"rounds={rounds}")
    assert said in str(caught.value)
