"""`eval/images.py`: a run's folder in, a report and a table out; bad arguments end with status 2."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from di4c_lm.core.settings import fields
from di4c_lm.data.images.images import Split
from di4c_lm.domains import image_report
from di4c_lm.measure.images import report as images_module
from di4c_lm.measure.images.report import ImageReportConfig, ImageRun
from tests.measure.pictures import Painter, projection, real_images

SCRIPT = Path(__file__).parents[2] / "eval" / "images.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eval_images", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of a domain that paints."""
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "parts.json").write_text(json.dumps({"domain": "painting"}))
    domain = ModuleType("painting_runs")

    def load_run(folder: Path, settings: ImageReportConfig, device: str) -> ImageRun:
        return ImageRun(
            folder=folder,
            samplers=(Painter("teacher", fault=1.0), Painter("student", fault=0.3)),
            images=Split(real_images(90, seed=1), real_images(60, seed=2)),
            config={"seed": 7},
            checkpoints={"student": folder / "student"},
            dtypes={"student": "float32"},
            cache_dir=folder,
        )

    vars(domain)["load_run"] = load_run
    monkeypatch.setitem(sys.modules, "painting_runs", domain)
    monkeypatch.setitem(image_report.LOADERS, "painting", "painting_runs")
    monkeypatch.setattr(images_module, "feature_net", lambda *_, **__: projection())
    return tmp_path


def test_a_run_is_measured(run_dir: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        f"run={run_dir}",
        "steps=[1,2]",
        "num_samples=30",
        "bootstrap=20",
        "permutations=19",
        "grid=3",
        "device=cpu",
    ]
    assert script.main(arguments) == 0
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
    assert manifest["config"]["run"] == {"seed": 7} and manifest["config"]["report"]["steps"] == [1, 2]


def test_the_help_explains_every_key(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith("usage: python eval/images.py [key=value ...]")
    for name, field in fields(ImageReportConfig).items():
        assert f"  {name}=" in said and field.help in said and field.help, name


@pytest.mark.parametrize(
    "argument, told",
    [
        ("protocol=half", ["protocol", "half"]),
        ("steps=[2,2]", ["steps", "distinct"]),
        ("num_samples=1", ["num_samples", "at least twice"]),
        ("fid=3", ["fid is no key"]),
        ("run=/absent", ["/absent", "student/model.safetensors"]),
    ],
)
def test_bad_arguments_end_with_status_2(
    argument: str, told: list[str], script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        script.main([argument])
    error = capsys.readouterr().err
    assert end.value.code == 2 and all(part in error for part in told), error


@pytest.mark.parametrize(
    "parts, told", [({"judge": None}, "none named"), ({"domain": "music"}, "domain 'music'"), (None, "none named")]
)
def test_runs_of_another_kind_are_named(
    parts: dict | None, told: str, run_dir: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "parts.json").unlink()
    if parts is not None:
        (run_dir / "parts.json").write_text(json.dumps(parts))
    with pytest.raises(SystemExit) as end:
        script.main([f"run={run_dir}"])
    assert end.value.code == 2 and told in capsys.readouterr().err


def test_a_missing_inception_ends_with_status_2(
    run_dir: Path, script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(run_dir))
    images = Split(real_images(30, seed=1), real_images(30, seed=2))
    run = ImageRun(folder=run_dir, samplers=(), images=images, config={}, checkpoints={}, dtypes={}, cache_dir=run_dir)
    monkeypatch.setattr(image_report, "load_image_run", lambda *_: run)
    with pytest.raises(SystemExit) as end:
        script.main([f"run={run_dir}", "features=inception"])
    assert end.value.code == 2 and "none are downloaded" in capsys.readouterr().err


def test_a_folder_with_a_teacher_and_no_parts_is_read_as_cifar(
    run_dir: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "parts.json").unlink()
    (run_dir / "teacher").mkdir()
    with pytest.raises(SystemExit) as end:
        script.main([f"run={run_dir}", "device=cpu"])
    assert end.value.code == 2 and "has no config.yaml" in capsys.readouterr().err
