"""What a result file says about its own making: a number can be made again, and two files are told apart or stand side by side."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from di4c_lm.core.files import read_json
from di4c_lm.core.settings import Texts, section, setting
from di4c_lm.measure.render.tables import LEAD, table

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "deepspeed", "datasets", "safetensors")


def manifest(
    *,
    config: Mapping[str, Any],
    checkpoints: Mapping[str, Path],
    seed: int,
    sampler: str,
    nfe: Mapping[str, Any],
    dtypes: Mapping[str, str],
    evaluator: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """JSON-ready facts: commit, hashes, seed, sampler, NFE, dtypes, evaluator, versions, machine, time.

    `checkpoints`: model name to its folder or file. `more`: further facts under their own names.
    Raises `FileNotFoundError` for a checkpoint that is not there.
    """
    return {
        "commit": commit(),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "config": dict(config),
        "config_hash": config_hash(config),
        "checkpoints": {name: {"path": str(path), "sha256": weights_hash(path)} for name, path in checkpoints.items()},
        "seed": seed,
        "sampler": sampler,
        "nfe": dict(nfe),
        "dtypes": dict(dtypes),
        "judge": dict(evaluator),
        "versions": versions(),
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
        **more,
    }


def commit() -> str:
    """The package's git commit, `-dirty` where tracked files differ; its version where it is no tracked checkout."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return f"di4c-lm {importlib.metadata.version('di4c-lm')}"
    head = _git(here.parent, "rev-parse", "HEAD")
    changed = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if changed else f"{head}"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the settings in canonical JSON: the order of keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def weights_hash(path: Path) -> str:
    """SHA-256 over the weight files of a folder (names and bytes, in name order), or of one file."""
    kinds = (".safetensors", ".bin", ".pt", ".ckpt", ".pth")
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in kinds)
    if not files:
        raise FileNotFoundError(f"{path}: expected a weight file or a folder with one of {', '.join(kinds)}")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Installed versions of the libraries that shape a number; nothing is imported for it."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            found[library] = "absent"
    return found


@section
class CompareReportsConfig:
    """Rows of several result files in one table, refused where evaluators, noise dtypes, lengths or tokenizers differ."""

    files: Texts = setting((), "gen_ppl.json or report.json files, at least 2")
    force: bool = setting(False, "show results that do not compare all the same, under a warning")


_SHOWN = ("gen_ppl", "entropy", "gradient_moment", "energy", "mauve")


def read_result(path: Path) -> dict[str, Any]:
    """A result file, gen_ppl.json or report.json. Raises `ValueError` for an absent one, and one without manifest and rows."""
    expected = "expected a result file with a manifest and rows, gen_ppl.json or report.json"
    try:
        found = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {expected}; found: {error}") from error
    if not {"manifest", "rows"} <= set(found):
        raise ValueError(f"{path}: {expected}; it has neither or lacks one")
    return found


def differences(manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What makes the files' numbers incomparable, one line each.

    Evaluators, the noise's dtype, lengths, tokenizers, prompts and feature models are looked at.
    """
    found = []
    for name, of in _IDENTITIES.items():
        values = {file: of(manifest) for file, manifest in manifests.items()}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            found.append(f"{name}: " + ", ".join(f"{value!r} in {file}" for file, value in values.items()))
    return found


def compare_results(settings: CompareReportsConfig) -> str:
    """The rows of several files as one table.

    Raises `ValueError` where `differences` finds any, unless `force`, and for fewer than 2 files.
    """
    files = settings.files
    if len(files) < 2:
        raise ValueError(f"files must be at least 2, got {len(files)}")
    results = {file: read_result(Path(file)) for file in files}
    against = differences({file: found["manifest"] for file, found in results.items()})
    if against and not settings.force:
        raise ValueError(
            "the files are not comparable (force=true shows them all the same):\n  " + "\n  ".join(against)
        )
    shown = [key for key in _SHOWN if all(key in row for found in results.values() for row in found["rows"])]
    rows = [{**row, "file": file} for file, found in results.items() for row in found["rows"]]
    numbers = [(key, lambda row, key=key: f"{row[key]:.4g}") for key in shown]
    columns = [
        ("file", lambda row: row["file"]),
        *LEAD,
        *numbers,
        ("flags", lambda row: "; ".join(row.get("flags", ()))),
    ]
    return "".join(f"NOT COMPARABLE, {line}\n" for line in against) + table(rows, columns)


def _evaluators(manifest: Mapping[str, Any]) -> list[Any]:
    every = manifest["judge"].get("judges", [manifest["judge"]])
    reading = ("sha256", "reads", "eos", "overflow")  # with the name of one without weights at hand
    return [{key: one.get(key) for key in (*reading, *(() if one.get("sha256") else ("name",)))} for one in every]


_IDENTITIES = {
    "evaluator": _evaluators,
    "dtype of the noise": lambda manifest: manifest["dtypes"].get("noise"),
    "length": lambda manifest: manifest.get("length"),
    "tokenizer": lambda manifest: manifest.get("tokenizer"),
    "prompting": lambda manifest: manifest.get("prompting"),
    "features": lambda manifest: (manifest["judge"].get("features") or {}).get("sha256"),
}
