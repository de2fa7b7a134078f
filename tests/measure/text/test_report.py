"""The whole report on a tiny run: every part, its files, and what is refused."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from di4c_lm.domains.text.domain import chosen
from di4c_lm.domains.text.model import TextModel
from di4c_lm.measure.text import report as text_report
from di4c_lm.measure.text.report import full_report
from di4c_lm.measure.text.samples import TextRun
from di4c_lm.measure.text.suite import ReportConfig
from tests.measure.models import text_model
from tests.measure.render.self_contained import references
from tests.measure.tiny import gpt2, words

LENGTH = 12
QUICK = ReportConfig(
    steps=(1, 2),
    num_samples=12,
    bootstrap=20,
    permutations=19,
    teacher_samples=8,
    self_bleu_samples=4,
    mauve_seeds=(0,),
    brier_prompts=6,
    temperatures=(0.5, 1.0),
    likelihood_sequences=6,
    likelihood_draws=2,
    lambdas=4,
    cost_batches=(2,),
    cost_repeats=1,
    device="cpu",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TextRun:
    folder = tmp_path_factory.mktemp("run")
    models = {"teacher": text_model(length=LENGTH), "student": text_model(codes=3, length=LENGTH, seed=1)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
    evaluator: object = gpt2(vocabulary=5).float()
    evaluator.save_pretrained(folder / "evaluator")  # type: ignore[attr-defined]
    models["teacher"].tokenizer.save_pretrained(str(folder / "evaluator"))
    validation = torch.randint(2, 4, (40, LENGTH), generator=torch.Generator().manual_seed(0))
    return TextRun(
        settings={"name": "tiny"},
        folder=folder,
        models=models,
        paths={name: folder / name for name in models},
        validation=validation,
        training=validation[:20],
        evaluator=str(folder / "evaluator"),
    )


def test_the_report_holds_every_part_and_its_manifest(run: TextRun) -> None:
    table = full_report(
        run, dataclasses.replace(QUICK, seeds=(0, 1), evaluators=(run.evaluator,), self_bleu_legacy=True)
    )
    folder = run.folder / "report"
    report = json.loads((folder / "report.json").read_text())
    assert {
        "rows",
        "comparisons",
        "brier",
        "frontier",
        "matched",
        "likelihood",
        "last_words",
        "correlation",
        "latent_modes",
        "cost",
    } <= set(report)
    assert {"judge", "dtypes", "length", "tokenizer", "seed", "sampler", "nfe", "checkpoints", "versions"} <= set(
        report["manifest"]
    )
    kinds = [row["kind"] for row in report["rows"]]
    assert [kinds.count(kind) for kind in ("data", "model", "canary", "baseline")] == [1, 4, 4, 5]
    assert all("energy_teacher" in row and "mauve_teacher_sd" in row for row in report["rows"])
    assert len(report["verdict"]) == 2 and report["verdict"][0] in table
    model = next(row for row in report["rows"] if row["kind"] == "model")
    assert model["num_samples"] == 24 and model["seeds"] == 2 and model["tail_p"] > 1e-3 and "self_bleu_legacy" in model
    assert {row["kind"] for row in report["rows"] if row["noise"] == "float32"} == {"canary"}
    assert [row["t"] for row in report["correlation"]] == [1.0, 0.75, 0.5, 0.25]
    assert {"gen_ppl", "bound_ppl, held-out", "accuracy, last words"} <= {
        one["metric"] for one in report["comparisons"]
    }
    assert "student" in table and "λ averaged" in table
    assert {"gen_ppl", "entropy"} <= {row["metric"] for row in report["detectable"]}
    assert "smallest differences that these samples show" in table
    with (folder / "report.csv").open() as file:
        parts = {row["part"] for row in csv.DictReader(file)}
    assert parts == {
        "rows",
        "brier",
        "frontier",
        "matched",
        "likelihood",
        "last_words",
        "correlation",
        "latent_modes",
        "cost",
        "comparisons",
    }
    page = (folder / "report.html").read_text()
    assert "Smallest differences that these samples show" in page
    assert "data:image/png;base64," in page and references(page) == []
    assert page.count("<b></b>") == len(report["examples"]) == 2 * len(report["rows"])
    assert table.splitlines()[-1] == f"report: {folder / 'report.html'}"
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_student_without_marginals_every_part_but_those_is_measured(
    run: TextRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default student of text: its float32 noise is the teacher's, which is sampled as published; its own sampler is probed."""
    probed, probe = [], text_report.tail_probe
    monkeypatch.setattr(
        text_report, "tail_probe", lambda *of, **how: [probed.append(how["settings"]), probe(*of, **how)][1]
    )
    models = {"teacher": run.models["teacher"], "student": text_model(window="sequential", length=LENGTH, seed=1)}
    models["student"].save_pretrained(tmp_path / "student")
    paths = {**run.paths, "student": tmp_path / "student"}
    found = dataclasses.replace(run, models=models, paths=paths, folder=tmp_path)
    full_report(found, dataclasses.replace(QUICK, steps=(2,), evaluators=(run.evaluator,)))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [row["model"] for row in report["rows"] if row["noise"] == "float32"] == ["canary: teacher, float32 noise"]
    assert {row["model"] for row in report["likelihood"]} >= {"teacher", "student"}
    assert probed == [{"sampler": "left_to_right"}]


def test_a_part_alone_needs_no_evaluator(run: TextRun, tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, parts=("cost",), report=str(tmp_path))
    full_report(dataclasses.replace(run, evaluator="/absent"), config)
    assert set(json.loads((tmp_path / "report.json").read_text())) >= {"cost"}
    assert not (tmp_path / "report.png").exists()


def test_models_are_chosen_by_name_and_by_folder(run: TextRun) -> None:
    assert list(chosen(run, ("student",)).models) == ["student"]
    found = chosen(run, ("student", f"again={run.folder / 'teacher'}"))
    assert list(found.models) == ["student", "again"] and found.paths["again"] == run.folder / "teacher"
    assert chosen(run, ()) is run


def test_a_model_of_another_tokenizer_is_refused(run: TextRun, tmp_path: Path) -> None:
    other = dataclasses.replace(text_model(length=LENGTH), tokenizer=words("xx", "yy"))
    assert isinstance(other, TextModel)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="another tokenizer or length"):
        chosen(run, ("teacher", f"other={tmp_path}"))


def test_too_few_references_are_refused(run: TextRun) -> None:
    with pytest.raises(ValueError, match="references must leave at least 8 of the 12 validation sequences"):
        full_report(dataclasses.replace(run, validation=run.validation[:12]), QUICK)
