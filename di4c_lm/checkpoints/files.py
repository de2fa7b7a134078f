"""Files read and written with care: whole or not at all, tensors only, errors that name path, expectation and finding."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from di4c_lm.checkpoints.pickles import LFS, read_pickle
from di4c_lm.core.files import read_json, save_tensors, whole_file

WEIGHTS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
CONFIG_FILE = "config.json"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU. Raises `ValueError` for a file that is absent, truncated or another format."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a safetensors file, found nothing") from None
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise ValueError(
                    f"{path}: expected a safetensors file, found a Git LFS pointer to it: fetch it by `git lfs pull`"
                ) from None
        raise ValueError(
            f"{path}: expected a whole safetensors file, found {size} bytes that are truncated or another format: {error}"
        ) from error


def read_weights_file(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, or else of `pytorch_model.bin`, each whole or in the shards that its `.index.json` names.

    Raises `ValueError`, also where none is there, or a shard is absent.
    """
    for name, read in ((WEIGHTS_FILE, read_safetensors), (PICKLE_FILE, _read_tensors)):
        if (folder / name).is_file():
            return read(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder, name, read)
    inside = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise ValueError(f"{folder}: expected {WEIGHTS_FILE} or {PICKLE_FILE}, or their .index.json, found {inside}")


def _read_shards(folder: Path, name: str, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all shards, which are mapped and not yet read. Raises `ValueError` where one is not as the index says."""
    path = folder / f"{name}.index.json"
    found: dict[str, Tensor] = {}
    for shard, names in _shards(folder, name).items():
        tensors = read(shard)
        if absent := sorted(names - set(tensors)):
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            raise ValueError(f"{path}: expected in {shard.name} {', '.join(absent[:3])}{more}, which it does not hold")
        found |= tensors
    return found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    content = read_pickle(path)
    if odd := sorted(str(name) for name, value in content.items() if not isinstance(value, Tensor)):
        raise ValueError(f"{path}: expected a dict of tensors, found other values under {odd}")
    return content


def _shards(folder: Path, name: str) -> dict[Path, set[str]]:
    """The files that an index names, all of them in its folder, and the tensors of each.

    Raises `ValueError` for another form, and for absent files.
    """
    path = folder / f"{name}.index.json"
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise ValueError(f"{path}: expected 'weight_map', a file for each tensor")
    shards: dict[Path, set[str]] = {}
    for tensor, file in sorted(where.items(), key=lambda item: item[1]):
        shards.setdefault(folder / file, set()).add(tensor)
    strange = [shard.name for shard in shards if shard.parent != folder or not shard.is_file()]
    if strange:
        raise ValueError(f"{path}: expected these files beside it, found none: {', '.join(strange)}")
    return shards


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` into `folder`, beside the old ones first and renamed when both are whole.

    A save that fails leaves the old files as they were. One killed between the renames leaves no `config.json`, so that
    nobody reads new tensors under old settings. Raises `OSError` that names the file, also for a full disk.
    """
    with whole_file(folder / CONFIG_FILE) as new_config, whole_file(folder / WEIGHTS_FILE) as new_weights:
        save_tensors(new_weights, tensors)
        new_config.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (folder / CONFIG_FILE).unlink(missing_ok=True)


def write_pickle(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of `torch.save`, whole or not at all. Raises `OSError` that names it, also for a full disk."""
    try:
        with whole_file(path) as beside:
            torch.save(content, beside)
    except RuntimeError as error:  # of the writer in C++
        raise OSError(f"{path}: could not be written: {error}") from error
