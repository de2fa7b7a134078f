"""Settings of an image run from words: named files, and refusals that name key, value and what is allowed."""

from pathlib import Path

import pytest
import yaml

from di4c_lm.core import image_cli
from di4c_lm.core.settings import to_dict
from di4c_lm.domains.pixels.settings import CifarConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def load(*words: str) -> CifarConfig:
    return image_cli.load(CifarConfig, words, CONFIGS, "train_cifar10")


def test_the_default_and_the_papers_run() -> None:
    assert load().data.source == "digits"
    paper = load("experiment=cifar10_paper", "teacher.path=here.pt")
    assert (paper.objective.num_lambdas, paper.train.micro_batch_size, paper.train.steps) == (16, 8, 320_000)
    assert (paper.optim.lr, paper.optim.ema_decay, paper.optim.weight_decay) == (2e-4, 0.9999, 0.0)
    assert (paper.model.width, paper.model.multipliers, paper.model.res_blocks) == (128, (1, 2, 2, 2), 2)
    objective = paper.objective
    step = objective.teacher_step
    assert (step.distribution, step.low, step.high) == ("log_uniform", 0.001, 0.01)
    assert (objective.distil_inputs, objective.delta, objective.alpha, objective.alpha_scale) == (
        "own",
        0.01,
        "sigmoid",
        1.0,
    )
    assert paper.teacher.path == "here.pt"
    assert load("experiment=cifar10_patches").data.size == load("experiment=cifar10_small").data.size == 32


def test_settings_survive_their_file(tmp_path: Path) -> None:
    image_cli.write_settings(tmp_path / "config.yaml", load("train.steps=7"))
    again = image_cli.from_dict(CifarConfig, yaml.safe_load((tmp_path / "config.yaml").read_text()))
    assert again == load("train.steps=7")
    assert to_dict(again)["lambda"]["law"] == "codebook"


def test_a_runs_folder_follows_what_makes_it() -> None:
    base = image_cli.run_dir(load())
    assert base.parent == Path("outputs") and base.name.startswith("cifar10-")
    assert image_cli.run_dir(load("train.log_every=3", "eval.skip=true")) == base
    assert image_cli.run_dir(load("train.steps=3")) != base
    assert image_cli.run_dir(load("run.name=mine")) == Path("outputs/mine")


@pytest.mark.parametrize(
    "word, message",
    [
        ("train.stepz=3", "unknown key 'train.stepz'.*did you mean train.steps"),
        ("objective.times.distribution=x", "objective.times.distribution must be one of uniform, paper, got 'x'"),
        ("objective.label_drop=2", r"objective\.label_drop must be in \[0, 1\], got 2.0"),
        ("lambda.path=adaln", "lambda.path must be classes, head, or token"),
        (
            "lambda.codebook_size=0",
            "lambda.codebook_size must be at least 1 when lambda.path=classes",
        ),
        ("lambda.law=gaussian", "lambda.law must be codebook when path=classes"),
        (
            "lambda={law: gaussian, path: token}",
            "lambda.law must be uniform, stratified or",
        ),
        ("chain.min_time=1", r"chain\.min_time must be a value in \[0, 1\), got 1.0"),
        ("model.width=6", "model.width must be a multiple of 4"),
        ("data.crop=true", "data.size must be a value of at least 1 where crop=true, got null"),
        ("experiment=nothing", "experiment='nothing' is impossible: allowed are .*cifar10_paper"),
        ("steps", "'steps' is not of the form key=value"),
    ],
)
def test_bad_words(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(word)


def test_help_and_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    for word, code, said in (("--help", 0, "experiment=cifar10_paper|cifar10_patches"), ("a=1", 2, "unknown key 'a'")):
        with pytest.raises(SystemExit) as ended:
            image_cli.parse(CifarConfig, [word, "--local_rank=0"], CONFIGS, "train_cifar10", "launch/train_cifar10.py")
        assert ended.value.code == code
        out, err = capsys.readouterr()
        assert said in out + err
