"""Runs of the toy domain in this process, and what they leave."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from di4c_lm.runs import recipe
from di4c_lm.runs.folder import run_dir
from tests.domains.toy import DOMAIN, ToySettings


def run(settings: ToySettings, rounds: Any = ()) -> Path:
    """The folder of a run that ends well."""
    assert recipe.run(DOMAIN, settings, rounds) == 0
    return run_dir(DOMAIN, settings)


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_s"} for row in rows]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
