"""Result files side by side: refused unless alike, or forced."""

import json
from pathlib import Path
from typing import Any

import pytest

from di4c_lm.measure.render.manifest import CompareReportsConfig, compare_results

MANIFEST: dict[str, Any] = {
    "judge": {"name": "a", "sha256": "1", "eos": "all"},
    "dtypes": {"noise": "float64", "model": "float32"},
    "length": 64,
    "tokenizer": "t",
}


def compare(files: list[Path], *, force: bool = False) -> str:
    return compare_results(CompareReportsConfig(files=tuple(map(str, files)), force=force))


def _file(path: Path, **changes: Any) -> Path:
    row = {"model": "m", "steps": 4, "gen_ppl": 20.5, "entropy": 5.4}
    path.write_text(json.dumps({"manifest": {**MANIFEST, **changes}, "rows": [row]}), encoding="utf-8")
    return path


def test_alike_files_make_one_table(tmp_path: Path) -> None:
    other = {"name": "elsewhere", "sha256": "1", "eos": "all"}
    table = compare([_file(tmp_path / "a.json"), _file(tmp_path / "b.json", judge=other)])
    assert "a.json" in table and "b.json" in table and table.count("20.5") == 2


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"judge": {"name": "b", "sha256": "2", "eos": "all"}}, "evaluator"),
        ({"judge": {"judges": [MANIFEST["judge"], {"name": "b"}]}}, "evaluator"),
        ({"dtypes": {"noise": "float32"}}, "dtype of the noise: 'float64'"),
        ({"length": 128}, "length: 64"),
        ({"tokenizer": "u"}, "tokenizer"),
        ({"prompting": {"prompts": 3}}, "prompting"),
    ],
)
def test_unlike_files_are_refused_unless_forced(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    files = [_file(tmp_path / "a.json"), _file(tmp_path / "b.json", **changes)]
    with pytest.raises(ValueError, match="not comparable") as error:
        compare(files)
    assert told in str(error.value)
    assert compare(files, force=True).startswith("NOT COMPARABLE, ")


def test_bad_files_are_named(tmp_path: Path) -> None:
    good = _file(tmp_path / "a.json")
    with pytest.raises(ValueError, match="files must be at least 2, got 1"):
        compare([good])
    with pytest.raises(ValueError, match="absent.json: expected a result file"):
        compare([good, tmp_path / "absent.json"])
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(ValueError, match="c.json: expected a result file with a manifest"):
        compare([good, tmp_path / "c.json"])
