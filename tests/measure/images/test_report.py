"""The report on image samplers: what it must tell apart, what it says of itself, and what it refuses."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from di4c_lm.data.images.images import Split
from di4c_lm.measure.images import report as images_module
from di4c_lm.measure.images.reference import load_reference
from di4c_lm.measure.images.report import (
    ImageReport,
    ImageReportConfig,
    ImageRun,
    ImageSampler,
    image_report,
    image_table,
    publish,
)
from tests.measure.pictures import painter, projection, real_images

TRAIN, HELD_OUT = real_images(150, seed=1), real_images(90, seed=2)
TEACHER, STUDENT = painter("teacher", fault=1.0), painter("student", fault=0.3)


@pytest.fixture(autouse=True)
def features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "feature_net", lambda *_, **__: projection())


def run_of(*samplers: ImageSampler, folder: Path = Path("unused")) -> ImageRun:
    facts: dict[str, Any] = {"config": {"x": 1}, "checkpoints": {"student": folder}}
    images = Split(TRAIN, HELD_OUT)
    return ImageRun(folder=folder, samplers=samplers or (TEACHER, STUDENT), images=images, cache_dir=folder, **facts)


def report(*samplers: ImageSampler, **changed: Any) -> ImageReport:
    plain = {"num_samples": 60, "steps": (1, 2), "bootstrap": 100, "permutations": 99, "grid": 4, **changed}
    return image_report(run_of(*samplers), ImageReportConfig(**plain), progress=False)


def test_worse_images_are_farther_and_more_steps_are_nearer() -> None:
    found = {(row["model"], row["steps"]): row for row in report().rows}
    fid = {cell: row["fid"] for cell, row in found.items()}
    assert fid["data", 0] < fid["student", 2] < fid["student", 1] < fid["teacher", 1]
    assert fid["student", 1] < fid["teacher", 2]
    assert found["teacher", 1]["coverage"] < 0.5 * found["data", 0]["coverage"]
    assert found["data", 0]["kid_p"] > 0.05 > found["teacher", 1]["kid_p"]
    assert found["student", 2]["nfe"] == 4.0 and found["data", 0]["nfe"] == 0.0


def test_rows_hold_every_score_with_its_interval() -> None:
    for row in report(steps=(1,)).rows:
        for metric in ("fid", "inception_score", "precision", "recall", "density", "coverage", "kid"):
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"], metric
        assert 1 <= row["inception_score"] <= 3 and row["label_agreement"] is None
        if row["model"] == "teacher":  # whose images are all alike, so that their number does not count
            assert row["fid_infinity"] == pytest.approx(row["fid"], rel=1e-12)
        else:
            assert row["fid_infinity"] < row["fid"]


def test_the_student_is_compared_at_as_many_and_at_half_as_many_steps() -> None:
    found = [
        (c["metric"], c["of"], c["steps"], c["minus"], c["minus_steps"]) for c in report(steps=(1, 2, 4)).comparisons
    ]
    steps = [(1, 1), (1, 2), (2, 2), (2, 4), (4, 4)]
    assert found == [(metric, "student", k, "teacher", n) for k, n in steps for metric in ("fid", "inception_score")]


def test_differences_have_a_sign_and_a_test() -> None:
    first = report(steps=(1,)).comparisons[0]
    assert first["difference_low"] < first["difference"] < first["difference_high"] < 0 and first["p_value"] < 0.01
    same = report(TEACHER, painter("other", fault=1.0), steps=(1,)).comparisons[0]
    assert same["difference"] == 0 and same["p_value"] == 1


def test_the_report_is_the_same_again_and_the_seed_matters() -> None:
    plain, again, other = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in report(STUDENT, seeds=seeds, steps=(1,)).rows]
        for seeds in ((0,), (0,), (1,))
    )
    assert plain == again and plain != other


def test_seeds_are_pooled_and_resampled() -> None:
    found = report(STUDENT, seeds=(0, 1, 2), steps=(1,))
    assert found.rows[1]["num_samples"] == 60 and found.rows[1]["fid_low"] < found.rows[1]["fid_high"]


def test_classes_are_asked_for_evenly_and_their_agreement_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    net = projection()
    net.facts = {**net.facts, "held_out_accuracy": 1.0}
    monkeypatch.setattr(images_module, "feature_net", lambda *_, **__: net)
    found = report(painter("guided", num_classes=3), painter("free"), steps=(1,))
    assert 0 <= found.rows[1]["label_agreement"] <= 1 and found.rows[2]["label_agreement"] is None
    assert found.rows[0]["label_agreement"] is not None


def test_against_the_validation_images() -> None:
    found = report(STUDENT, against="validation", steps=(1,))
    assert found.reference["images"] == HELD_OUT.fingerprint and found.reference["count"] == len(HELD_OUT)


def test_reference_statistics_are_written_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "statistics" / "reference.npz"
    first, second = (report(STUDENT, reference=str(path), steps=(1,)) for _ in range(2))
    loaded = load_reference(path, width=4, network="0" * 64)
    assert first.reference == second.reference == loaded.described()
    assert first.rows[1]["fid"] == second.rows[1]["fid"]


def test_moments_alone_give_the_distance_alone(tmp_path: Path) -> None:
    plain = report(STUDENT, steps=(1,))
    embedded = projection().embed(TRAIN.as_bytes()).features
    np.savez(tmp_path / "x.npz", mu=embedded.mean(0), sigma=np.cov(embedded.T))
    found = report(STUDENT, reference=str(tmp_path / "x.npz"), steps=(1,))
    assert found.rows[1]["fid"] == pytest.approx(plain.rows[1]["fid"])
    assert found.rows[1]["precision"] is found.rows[1]["kid"] is found.rows[1]["kid_p"] is None
    assert "precision" not in image_table(found) and "an unknown number of images" in image_table(found)


@pytest.mark.parametrize(
    "arrays, told",
    [
        ({"mu": np.zeros(4)}, "found no sigma"),
        ({"mu": np.zeros(5), "sigma": np.eye(5)}, r"moments of 4 features, found \(5,\)"),
        (
            {
                "mu": np.zeros(4),
                "sigma": np.eye(4),
                "facts": np.array('{"name": "x", "images": "", "network": "abcabc"}'),
            },
            "SHA-256 abcabc",
        ),
        ({"mu": np.array([{}]), "sigma": np.eye(4)}, "damaged"),
    ],
)
def test_a_reference_that_does_not_fit_is_named(arrays: dict, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"x.npz.*{told}"):
        report(STUDENT, reference=str(path))


@pytest.mark.parametrize(
    "samplers, told",
    [
        ([painter("data")], "none of them 'data'"),
        ([painter("a"), painter("a")], "names of their own"),
        ([painter("small", shape=(5, 6, 1))], r"'small' at 1 steps gave samples of shape \(60, 5, 6, 1\)"),
        ([painter("coloured", shape=(6, 6, 3))], r"expected \(60, 6, 6, 1\)"),
    ],
)
def test_samplers_that_cannot_be_measured(samplers: list[ImageSampler], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        report(*samplers)


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"num_samples": 10, "seeds": (0, 1, 2)}, "num_samples must be .*, got 10"),
        ({"steps": (2, 2)}, "steps"),
        ({"steps": ()}, "steps"),
        ({"steps": (0,)}, "steps"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"neighbours": 5}, "neighbours must be .*, got 5"),
        ({"bootstrap": 0}, "bootstrap must be .*, got 0"),
    ],
)
def test_impossible_settings(changed: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ImageReportConfig(**changed)


def test_protocols() -> None:
    assert ImageReportConfig(protocol="full").each_seed == 50_000
    assert ImageReportConfig(protocol="full", seeds=(0, 1, 2)).each_seed == 16_667
    assert ImageReportConfig(num_samples=60, seeds=(0, 1)).each_seed == 30


def test_files_hold_what_was_measured(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = report()
    settings = ImageReportConfig(num_samples=60, steps=(1, 2))
    paths = publish(found, run_of(folder=tmp_path), settings)
    told = json.loads(paths["json"].read_text())
    assert told["rows"] == found.rows and told["comparisons"] == found.comparisons
    manifest = told["manifest"]
    assert manifest["samplers"]["student"]["guidance"] == 1.5 and manifest["nfe"]["student"] == {"1": 2.0, "2": 4.0}
    assert manifest["reference"]["sha256"] == found.reference["sha256"] and manifest["judge"]["name"] == "projection"
    assert manifest["protocol"] == "quick" and manifest["checkpoints"]["student"]["sha256"]
    sheet = list(csv.DictReader(io.StringIO(paths["csv"].read_text())))
    assert [float(row["fid"]) for row in sheet] == [row["fid"] for row in found.rows]
    assert Image.open(paths["png"]).size[0] > 1000 and Image.open(paths["samples"]).format == "PNG"


def test_the_table_says_which_features_and_how_many_images() -> None:
    text = image_table(report())
    assert "features: projection (random)" in text and "150 images" in text and "student - teacher" in text
    assert "1 - 2" in text and not any(math.isnan(row["fid"]) for row in report().rows)
