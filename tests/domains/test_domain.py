"""Which run is meant where one is named, or none; and how its models are sampled."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from di4c_lm.domains.codes.domain import CodeModel
from di4c_lm.domains.codes.settings import CodeSettings
from di4c_lm.domains.domain import find_run, sampling, sampling_facts
from di4c_lm.domains.text.settings import TextSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.mixtures.sequential import SequentialSettings
from di4c_lm.objectives.likelihood import Likelihood
from di4c_lm.samplers.ancestral import Ancestral
from di4c_lm.samplers.confidence import Confidence
from di4c_lm.samplers.left_to_right import LeftToRight
from di4c_lm.samplers.trajectory import Decoding
from di4c_lm.samplers.usual import Usual, resolved
from tests.mixtures.helpers import on_dit


def make(folder: Path, age: float) -> Path:
    weights = folder / "student" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    os.utime(weights, (1e9 - age, 1e9 - age))
    return folder


def test_the_newest_finished_run_is_chosen(tmp_path: Path) -> None:
    make(tmp_path / "old", age=100)
    newest = make(tmp_path / "new", age=1)
    (tmp_path / "unfinished").mkdir()
    assert find_run(None, str(tmp_path)) == newest
    assert find_run(str(tmp_path / "old"), str(tmp_path)) == tmp_path / "old"


def test_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ValueError, match=f"outputs='{tmp_path}' holds no finished run"):
        find_run(None, str(tmp_path))
    with pytest.raises(ValueError, match="run='.*unfinished': expected a run's folder"):
        find_run(str(tmp_path / "unfinished"), str(tmp_path))


def test_the_models_of_a_run_are_sampled_as_it_says_and_a_hybrid_ends_with_the_teacher() -> None:
    settings = TextSettings(sampler=Confidence(), decoding=Decoding(temperature=0.5, hybrid_last=2))
    models = {"teacher": object(), "student": object()}
    student, teacher = (sampling(settings, name, models) for name in ("student", "teacher"))
    assert (student["teacher"], student["hybrid_last"]) == (models["teacher"], 2)
    assert (teacher["teacher"], teacher["hybrid_last"]) == (None, 0)
    assert student["sampler"] == Confidence() and student["temperature"] == teacher["temperature"] == 0.5
    assert sampling_facts(settings, models["student"])["sampler"] == "confidence"


def test_where_no_sampler_is_said_each_model_has_its_usual_one() -> None:
    models = {
        "teacher": SimpleNamespace(usual_sampler="ancestral"),
        "student": SimpleNamespace(usual_sampler="left_to_right"),
    }
    settings = TextSettings()
    found = {name: sampling(settings, name, models)["sampler"] for name in models}
    assert found == {"teacher": Ancestral(), "student": LeftToRight()}
    assert sampling_facts(settings, models["student"])["sampler"] == "left_to_right"
    assert [resolved(said, models["student"]) for said in ("usual", Usual(), "ancestral", Confidence())] == [
        LeftToRight(),
        LeftToRight(),
        Ancestral(),
        Confidence(),
    ]


@pytest.mark.parametrize(
    ("mixture", "usual"),
    [
        (SequentialSettings(), "left_to_right"),
        (SequentialSettings(order="random"), "ancestral"),
        (SequentialSettings(positions="revealed"), "ancestral"),
        (ClassChainSettings(), "ancestral"),
    ],
)
def test_the_usual_sampler_is_that_of_the_mixture_on_text_and_confidence_on_codes(mixture: Any, usual: str) -> None:
    assert TextSettings(mixture=mixture).usual_sampler == on_dit(mixture).usual_sampler == usual
    assert (
        CodeSettings(mixture=mixture, objective=Likelihood()).usual_sampler == CodeModel.usual_sampler == "confidence"
    )
    with pytest.raises(ValueError, match="decoding.noise must be exact but for ancestral"):
        TextSettings(mixture=SequentialSettings(), decoding=Decoding(noise="legacy_fp32"))
