"""The wheel, installed into an environment of its own, trains, samples and measures in an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.test_api import TINY

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, and of ours only the other packages."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    place = next(folder.glob("lib/python*/site-packages"))
    (place / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # .pth files in there are not followed
    return python.parent


def run(folder: Path, *command: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"DI4C_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def test_the_wheel_holds_code_presets_and_types_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].rpartition(".")[2] for name in names} == {"di4c_lm", "dist-info"}
    presets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"di4c_lm/{name}" for name in presets} | {"di4c_lm/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith("di4c_lm/tests") or "__pycache__" in name]


def test_from_the_install_to_samples_and_a_report_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Once upon a time {i}: " + " ".join(str(i * k % 97) for k in range(1, 40))} for i in range(200)]
    (tmp_path / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"{key}={json.dumps(value)}" for key, value in TINY.items()]
    di4c = installed / "di4c"
    run(tmp_path, di4c, "train", "data=stories.jsonl", "recipe=copula", "train.steps=2", "run.name=first", *words)
    assert run(tmp_path, di4c, "sample", "prompt=Once", "steps=2", "num_samples=3").count("--- ") == 3
    table = run(tmp_path, di4c, "eval", "gen_ppl", "steps=[1]", "num_samples=8", "bootstrap=50")
    assert "teacher" in table and "student" in table
    code = "import di4c_lm; print(di4c_lm.__file__, len(di4c_lm.load('outputs/first').sample(2, steps=1)))"
    place, count = run(tmp_path, installed / "python", "-c", code).split()
    assert Path(place).is_relative_to(installed.parent) and count == "2"
    assert "di4c_paper" in run(tmp_path, installed / "python", "-m", "di4c_lm", "train", "cifar10", "--help")
