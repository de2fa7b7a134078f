"""The command line: what is accepted, and what each kind of bad input gets (exit 2 with key, value, allowed)."""

import subprocess
import sys
from pathlib import Path

import pytest

from di4c_lm.core import cli
from di4c_lm.core.settings import to_dict
from di4c_lm.domains.text.settings import Config
from di4c_lm.objectives.di4c import Di4C
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.objectives.mdlm import Mdlm
from di4c_lm.objectives.sdtt import Sdtt

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


def load(*words: str) -> Config:
    return cli.load(words, CONFIGS, "train_lm")


def test_the_default_loads_and_round_trips() -> None:
    config = load()
    assert config.data.kind == "builtin"
    assert cli.from_dict(to_dict(config)) == config


def test_the_papers_run_is_the_papers() -> None:
    config = load("experiment=paper_owt")
    assert (config.model.num_blocks, config.model.hidden_size, config.model.num_heads) == (12, 768, 12)
    assert isinstance(config.objective, Di4C)
    assert (config.data.length, config.objective.num_lambdas, config.objective.alpha_scale) == (1024, 16, 0.1)
    assert (config.optim.lr, config.optim.ema_decay, config.optim.warmup_steps, config.optim.clip_norm) == (
        3e-5,
        0.9999,
        500,
        1,
    )
    assert config.train.dtype == "bfloat16"
    assert config.data.streaming
    assert (config.data.dataset, config.teacher.path) == ("Skylion007/openwebtext", "kuleshov-group/mdlm-owt")
    assert load("experiment=paper_owt", "teacher=sdtt").teacher.path == "jdeschena/sdtt"


def test_words_reach_their_keys() -> None:
    config = load("train.steps=7", "lambda.path=token", "zero.stage=2", "objective.num_lambdas=4", "eval.steps=[1,3]")
    assert (config.train.steps, config.latent.path, config.zero.stage) == (7, "token", 2)
    assert isinstance(config.objective, Likelihood)
    assert (config.objective.num_lambdas, config.eval.steps) == (4, (1, 3))


def test_an_objective_has_its_own_keys_and_no_others() -> None:
    assert isinstance(load("objective=mdlm", "objective.times=iid").objective, Mdlm)
    sdtt = load("objective=sdtt", "objective.round=3").objective
    assert isinstance(sdtt, Sdtt)
    assert sdtt.step == 4 / 1024
    with pytest.raises(
        ValueError, match=r"unknown key 'objective.num_lambdas'.*allowed are objective.kind, objective.div"
    ):
        load("objective=sdtt", "objective.num_lambdas=4")
    for config in (load("objective=mdlm"), load("objective=sdtt"), load()):
        assert cli.from_dict(to_dict(config)) == config


def test_a_teacher_or_data_of_ones_own() -> None:
    config = load("teacher=some/folder=x", "data=/a b/c.jsonl")
    assert (config.teacher.kind, config.teacher.path) == ("pretrained", "some/folder=x")
    assert (config.data.kind, config.data.path) == ("files", "/a b/c.jsonl")


@pytest.mark.parametrize(
    ("word", "named", "allowed"),
    [
        ("train.stepz=3", "'train.stepz'", "did you mean train.steps"),
        ("foo=1", "'foo'", "allowed are data, eval"),
        ("train.steps=abc", "train.steps='abc'", "valid integer"),
        ("train.steps=1.5", "train.steps=1.5", "valid integer"),
        ("train.steps=0", "train.steps must be", "at least 1, got 0"),
        ("train.steps=true", "train.steps=True", "valid integer"),
        ("zero.stage=7", "zero.stage=7", "0, 1, 2 or 3"),
        ("objective=di5c", "objective='di5c'", "di4c, di4c_codes, di4c_paper, likelihood"),
        ("objective.kind=sdtt", "objective.kind='sdtt'", "chosen by objective=<kind>"),
        ("objective.times.distribution=x", "objective.times.distribution must be", "uniform, paper, got 'x'"),
        ("objective.times.grid_share=2", "objective.times.grid_share must be", "[0, 1], got 2"),
        ("lambda.inject_at=9", "lambda.inject_at must be", "below model.num_blocks=4"),
        ("lambda.inject_at=-5", "lambda.inject_at must be", "below model.num_blocks=4"),
        ("objective.num_lambdas=0", "objective.num_lambdas must be", "at least 1, got 0"),
        ("lambda.law=uniform", "lambda.law must be", "codebook when path=classes"),
        ("model.hidden_size=30", "model.hidden_size must be", "a multiple of"),
        ("data.validation_share=1.0", "data.validation_share must be", "(0, 1)"),
        ("nonsense", "'nonsense'", "key=value"),
    ],
)
def test_bad_input_names_key_value_and_what_is_allowed(word: str, named: str, allowed: str) -> None:
    with pytest.raises(ValueError, match="(?s).") as caught:
        load(word)
    assert named in str(caught.value)
    assert allowed in str(caught.value)


def test_the_script_ends_with_status_2_before_loading_anything() -> None:
    done = subprocess.run(
        [sys.executable, "launch/train_lm.py", "--local_rank=0", "train.steps=-1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "error: train.steps must be at least 1, got -1"
    assert not done.stdout


HEAVY = ("deepspeed", "datasets", "wandb", "mauve", "flash_attn")


@pytest.mark.parametrize(
    "words", [["-c", "import di4c_lm"], ["launch/train_lm.py", "--help"], ["eval/gen_ppl.py", "--help"]]
)
def test_help_and_import_leave_heavy_libraries_alone(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "di4c_lm" in imported
    assert imported.isdisjoint(HEAVY)


def test_help_lists_every_key() -> None:
    done = subprocess.run([sys.executable, "launch/train_lm.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    for key in (
        "train.steps",
        "train.micro_batch_size",
        "objective.num_lambdas",
        "zero.stage",
        "run.name",
        "lambda.path",
    ):
        assert f"  {key}=" in done.stdout


def test_the_name_of_a_run_follows_its_settings() -> None:
    assert cli.run_dir(load("run.name=a")) == Path("outputs/a")
    assert cli.run_dir(load("run.dir=/x/y")) == Path("/x/y")
    unnamed = cli.run_dir(load())
    assert unnamed == cli.run_dir(load("wandb.mode=offline", "train.log_every=3"))
    assert unnamed != cli.run_dir(load("train.seed=1"))
