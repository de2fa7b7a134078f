"""A folder of files that can tell whether it is whole: sizes and checksums in a manifest that is written last."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

_MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d{8})")


def snapshots(folder: Path) -> list[Path]:
    """The finished snapshots in `folder`, whole or not."""
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_and_sum(path: Path) -> dict[str, Any]:
    """Put a file on the disk; its size and checksum, for the manifest."""
    sync(path)
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Close the folder `path`: from here on it can be found whole. `manifest["files"]` holds `sync_and_sum` by file name."""
    file = path / _MANIFEST
    file.write_text(json.dumps({**manifest, "sha256": _seal(manifest)}, indent=1))
    sync(file)
    sync(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """What `write_manifest` wrote. Errors: `OSError` where it is absent, `ValueError` where it is damaged."""
    manifest = json.loads((path / _MANIFEST).read_text())
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != _seal(manifest):
        raise ValueError("its checksum does not fit")
    return manifest


def problem_of(path: Path, *, share: tuple[int, int] = (0, 1)) -> str | None:
    """Why this snapshot is not whole, or None. `share` = (r, n): read every n-th file from the r-th on."""
    try:
        files = sorted(read_manifest(path)["files"].items())
    except (OSError, ValueError) as error:
        return f"{_MANIFEST} is missing or damaged: {error}"
    for name, entry in files[share[0] :: share[1]]:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, expected {entry['bytes']}"
        if _sha256(file) != entry["sha256"]:
            return f"{name} has another checksum than when it was written"
    return None
