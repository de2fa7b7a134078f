"""A teacher's own samples as shards: resumable, and refused by name where they are another's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from di4c_lm.core.compose import CONFIGS, compose
from di4c_lm.data.records.shards import Shards
from di4c_lm.domains.text.domain import DOMAIN
from di4c_lm.domains.text.model import TextModel
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.runs import recipe
from di4c_lm.runs.prepare import teacher_samples
from tests.measure.models import text_model
from tests.measure.tiny import words

TOKENIZER = words("aa", "ab")
TOKENIZER.add_special_tokens({"bos_token": "<eos>"})  # as every corpus's has
LENGTH, COUNT = 8, 30


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("teachers")
    for seed in (0, 1):
        replace(text_model(length=LENGTH, seed=seed), tokenizer=TOKENIZER).save_pretrained(folder / str(seed))
    return [folder / "0", folder / "1"]


def arguments(teacher: Path, out: Path, *more: str) -> list[str]:
    sizes = [f"num_samples={COUNT}", "validation_share=0.2", "shard_rows=10", "steps=4", "batch_size=3", "device=cpu"]
    return [f"teacher={teacher}", f"out={out}", *sizes, *more]


@pytest.fixture(scope="module")
def samples(teachers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "shards"
    assert teacher_samples.main(arguments(teachers[0], folder)) == 0
    return folder


def rows(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    shards = Shards.read(folder)
    files = [np.fromfile(folder / one.name, shards.index.dtype) for one in shards.index.train]
    return np.concatenate(files).reshape(-1, LENGTH), shards.validation()


def test_the_shards_are_samples_of_the_teacher(samples: Path, teachers: list[Path]) -> None:
    training_ND, held_out_ND = rows(samples)
    assert (len(training_ND), len(held_out_ND)) == (24, 6)
    model = TextModel.from_pretrained(teachers[0])
    first_ND, _ = model.sample_tokens(10, 4, seed=0)
    assert training_ND[:10].tolist() == first_ND.tolist()
    assert len(np.unique(np.concatenate([training_ND, held_out_ND]), axis=0)) > 20
    assert Shards.read(samples).index.counts == {"documents": 24, "held_out": 6, "tokens": 24 * LENGTH}


def test_an_interrupted_command_resumes_and_makes_the_same(
    samples: Path, teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def sampled(settings: Any, model: Any, prompts: list[str], first: int, count: int) -> Any:
        made.append(first)
        if made == [0, 10]:
            raise KeyboardInterrupt
        return real(settings, model, prompts, first, count)

    real = teacher_samples._sampled
    monkeypatch.setattr(teacher_samples, "_sampled", sampled)
    with pytest.raises(SystemExit):
        teacher_samples.main(arguments(teachers[0], tmp_path / "shards"))
    assert teacher_samples.main(arguments(teachers[0], tmp_path / "shards")) == 0
    assert made == [0, 10, 10, 20, 24]
    for here, there in zip(rows(tmp_path / "shards"), rows(samples), strict=True):
        np.testing.assert_array_equal(here, there)
    assert teacher_samples.main(arguments(teachers[0], tmp_path / "shards")) == 0
    assert len(made) == 5


def test_other_samples_are_not_mixed_with_these(
    samples: Path, teachers: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for teacher, more in ((teachers[1], []), (teachers[0], ["seed=1"]), (teachers[0], ["temperature=0.5"])):
        with pytest.raises(SystemExit):
            teacher_samples.main([*arguments(teacher, samples), *more])
        assert "holds shards made with" in capsys.readouterr().err


def test_samples_begin_with_prompts(teachers: list[Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("aa ab\nab ab ab\n")
    prompts = f"prompts_file={tmp_path / 'prompts.txt'}"
    assert teacher_samples.main([*arguments(teachers[0], tmp_path / "shards"), prompts]) == 0
    training_ND, _ = rows(tmp_path / "shards")
    assert (training_ND[::2, :2] == [2, 3]).all() and (training_ND[1::2, :3] == [3, 3, 3]).all()


def settings(teacher: Path, samples: Path, *more: str) -> TextSettings:
    where = [f"teacher={teacher}", "data=shards", f"data.path={samples}", f"data.length={LENGTH}"]
    small = ["mixture.codebook_size=3", "train.steps=2", "train.save_every=0", "run.device=cpu", "eval.skip=true"]
    return compose(TextSettings, [*where, *small, "objective.source=teacher", *more], CONFIGS, "text")


def test_a_student_is_trained_on_them(samples: Path, teachers: list[Path], tmp_path: Path) -> None:
    config = settings(teachers[0], samples, f"run.dir={tmp_path / 'run'}")
    assert recipe.run(DOMAIN, config) == 0
    assert TextModel.from_pretrained(tmp_path / "run" / "student").length == LENGTH


def test_samples_of_another_teacher_are_refused_by_name(samples: Path, teachers: list[Path]) -> None:
    DOMAIN.check_teacher(settings(teachers[0], samples))
    with pytest.raises(ValueError, match=r"data\.path must hold samples of the teacher .*1, whose weights"):
        DOMAIN.check_teacher(settings(teachers[1], samples))
    with pytest.raises(
        ValueError, match=r"objective\.source must be teacher: .* holds samples of a teacher, got 'corpus'"
    ):
        DOMAIN.check_teacher(settings(teachers[0], samples, "objective.source=corpus"))


def test_samples_under_another_tokenizer_are_refused_by_name(samples: Path, tmp_path: Path) -> None:
    other = words("ab", "aa")
    other.add_special_tokens({"bos_token": "<eos>"})
    replace(text_model(length=LENGTH), tokenizer=other).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="is not the tokenizer of the shards"):
        DOMAIN.checks(settings(tmp_path / "other", samples))["data"]()


def test_the_source_must_be_there(teachers: list[Path]) -> None:
    for said in ([], [f"teacher={teachers[0]}"], ["data=builtin", f"teacher={teachers[0]}"]):
        with pytest.raises(ValueError, match=r"objective\.source must be corpus, or teacher where a teacher is given"):
            compose(TextSettings, [*said, "objective.source=teacher"], CONFIGS, "text")


def test_a_fingerprint_is_of_values_and_not_of_dtypes(teachers: list[Path]) -> None:
    from di4c_lm.checkpoints.load import read_checkpoint

    weights = read_checkpoint(teachers[0])
    wider = replace(weights, tensors={name: tensor.double() for name, tensor in weights.tensors.items()})
    other = replace(weights, tensors={name: tensor + 1e-3 for name, tensor in weights.tensors.items()})
    assert weights.fingerprint == wider.fingerprint != other.fingerprint
