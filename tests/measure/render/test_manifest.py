import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from di4c_lm.measure.render import manifest as manifests
from di4c_lm.measure.render.manifest import commit, config_hash, manifest, versions, weights_hash


def test_it_holds_what_the_design_asks_for_and_fits_json(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = manifest(
        config={"steps": (1, 2)},
        checkpoints={"student": tmp_path},
        seed=3,
        sampler="ancestral",
        nfe={"student": 4.0},
        dtypes={"noise": "float64"},
        evaluator={"name": "gpt2"},
        eos="all",
    )
    assert json.loads(json.dumps(found))["eos"] == "all"
    assert found["checkpoints"]["student"]["sha256"] == weights_hash(tmp_path)
    asked = {"commit", "config_hash", "seed", "sampler", "nfe", "dtypes", "judge", "versions", "time"}
    assert asked <= set(found)


def test_hashes_follow_content_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"same")
        (tmp_path / name / f"{name}.txt").write_text(name)  # no weight file: does not count
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"other")
    assert weights_hash(tmp_path / "a") != weights_hash(tmp_path / "b")
    file = tmp_path / "a" / "model.safetensors"
    assert weights_hash(file) == hashlib.sha256(b"model.safetensors" + b"same").hexdigest()
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1}) != config_hash({"a": 1, "b": 3})


def test_an_absent_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}.*expected a weight file"):
        weights_hash(tmp_path)


def test_commit_tells_a_dirty_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    source = tmp_path / "manifest.py"
    source.write_text("first")
    monkeypatch.setattr(manifests, "__file__", str(source))
    assert commit().startswith("di4c-lm ")  # no repository
    git("init")
    assert commit().startswith("di4c-lm ")  # a repository that does not track the package
    git("add", "manifest.py")
    git("commit", "-m", "first")
    clean = commit()
    assert len(clean) == 40
    source.write_text("second")
    assert commit() == f"{clean}-dirty"


def test_versions_import_nothing() -> None:
    assert versions()["torch"].startswith("2.")
