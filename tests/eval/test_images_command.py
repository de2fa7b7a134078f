"""`di4c eval images`: a run's folder in, a report and a table out; bad arguments end with status 2."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from di4c_lm.__main__ import main
from di4c_lm.core.settings import fields
from di4c_lm.data.images.images import Split
from di4c_lm.domains.domain import DOMAINS, FinishedRun, find_domain
from di4c_lm.domains.images import report
from di4c_lm.measure.images import report as images_module
from di4c_lm.measure.images.report import ImageReportConfig
from di4c_lm.runs.folder import write_settings
from di4c_lm.training.settings import RunConfig
from tests.domains.toy import ToyDomain, ToySettings
from tests.measure.pictures import painter, projection, real_images

FEATURE_NET = images_module.feature_net


def measure(*arguments: str) -> int:
    return main(["eval", "images", *arguments])


class Painting(ToyDomain):
    """A domain that paints."""

    name = "painting"

    def report(self, run: FinishedRun, settings: ImageReportConfig | None = None, data: object = None) -> str:
        assert settings is not None
        samplers = [painter(name, fault=fault) for name, fault in zip(run.models, (1.0, 0.3), strict=True)]
        images = Split(real_images(90, seed=1), real_images(60, seed=2))
        return report(run, settings, images, samplers)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of a domain that paints."""
    domain = ModuleType("painting_domain")
    vars(domain)["DOMAIN"] = Painting()
    monkeypatch.setitem(sys.modules, "painting_domain", domain)
    monkeypatch.setitem(DOMAINS, "painting", "painting_domain")
    monkeypatch.setattr(images_module, "feature_net", lambda *_, **__: projection())
    for name in ("teacher", "student"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    settings = ToySettings(run=RunConfig(cache_dir=str(tmp_path)), sequences=7)
    write_settings(tmp_path, settings)
    models = {name: tmp_path / name for name in ("teacher", "student")}
    FinishedRun(domain=find_domain("painting"), folder=tmp_path, settings=settings, models=models).write()
    return tmp_path


def test_a_run_is_measured(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        f"run={run_dir}",
        "steps=[1,2]",
        "num_samples=30",
        "bootstrap=20",
        "permutations=19",
        "grid=3",
        "device=cpu",
    ]
    assert measure(*arguments) == 0
    said = capsys.readouterr().out
    assert "teacher" in said and "student - teacher" in said and "FID" in said
    assert sorted(path.name for path in (run_dir / "report").iterdir()) == [
        "images.csv",
        "images.html",
        "images.json",
        "images.png",
        "samples.png",
    ]
    manifest = json.loads((run_dir / "report" / "images.json").read_text())["manifest"]
    assert manifest["config"]["run"]["sequences"] == 7 and manifest["config"]["report"]["steps"] == [1, 2]


def test_the_help_explains_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        measure("--help")
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith("usage: di4c eval images [key=value ...]")
    for name, field in fields(ImageReportConfig).items():
        assert f"  {name}=" in said and field.help in said and field.help, name


@pytest.mark.parametrize(
    "argument, told",
    [
        ("protocol=half", ["protocol", "half"]),
        ("steps=[2,2]", ["steps", "distinct"]),
        ("num_samples=1", ["num_samples", "at least twice"]),
        ("fid=3", ["there is no key fid"]),
        ("run=/absent", ["/absent", "student/model.safetensors"]),
    ],
)
def test_bad_arguments_end_with_status_2(argument: str, told: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        measure(argument)
    error = capsys.readouterr().err
    assert end.value.code == 2 and all(part in error for part in told), error


@pytest.mark.parametrize(
    "parts, told",
    [
        ({"models": {}}, "domain must be one of"),
        ({"domain": "music"}, "got 'music'"),
        (None, "it has no parts.json"),
        ({"domain": "text", "models": {"student": "gone"}}, "it has no gone"),
    ],
)
def test_runs_of_another_kind_are_named(
    parts: dict | None, told: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "parts.json").unlink()
    if parts is not None:
        (run_dir / "parts.json").write_text(json.dumps(parts))
    with pytest.raises(SystemExit) as end:
        measure(f"run={run_dir}")
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_a_missing_inception_ends_with_status_2(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images_module, "feature_net", FEATURE_NET)
    monkeypatch.setenv("TORCH_HOME", str(run_dir))
    with pytest.raises(SystemExit) as end:
        measure(f"run={run_dir}", "features=inception")
    assert end.value.code == 2 and "none are downloaded" in capsys.readouterr().err
