"""What a result file says about its own making, so that two files can be told apart and a number can be made again."""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
