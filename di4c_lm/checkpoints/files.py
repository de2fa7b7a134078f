"""Files read and written with care: whole or not at all, tensors only, errors that name path, expectation and finding."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from di4c_lm.checkpoints.pickles import read_pickle

WEIGHTS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"
CONFIG_FILE = "config.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ValueError` where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a JSON file, found nothing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path}: expected a JSON file, could not read it: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU. Raises `ValueError` for a file that is absent, truncated or another format."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a safetensors file, found nothing") from None
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path}: expected a whole safetensors file, found {size} bytes that are truncated or another format: {error}"
        ) from error


def read_weights_file(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, or else of `pytorch_model.bin`. Raises `ValueError`, also where neither is there."""
    if (folder / WEIGHTS_FILE).is_file():
        return read_safetensors(folder / WEIGHTS_FILE)
    if not (folder / PICKLE_FILE).is_file():
        inside = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ValueError(f"{folder}: expected {WEIGHTS_FILE} or {PICKLE_FILE}, found {inside}")
    content = read_pickle(folder / PICKLE_FILE)
    if odd := sorted(str(name) for name, value in content.items() if not isinstance(value, Tensor)):
        raise ValueError(f"{folder / PICKLE_FILE}: expected a dict of tensors, found other values under {odd}")
    return content


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json` into `folder`, beside the old ones first and renamed when both are whole.

    A save that fails leaves the old files as they were. One killed between the renames leaves no `config.json`, so that
    nobody reads new tensors under old settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        whole = {name: _own_storage(tensor) for name, tensor in tensors.items()}
        save_file(whole, Path(temporary) / WEIGHTS_FILE, metadata={"format": "pt"})
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (Path(temporary) / CONFIG_FILE).write_text(text, encoding="utf-8")
        usual_mode = (Path(temporary) / CONFIG_FILE).stat().st_mode
        (Path(temporary) / WEIGHTS_FILE).chmod(usual_mode)  # `save_file` lets only the owner read
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            with open(Path(temporary) / name, "rb+") as file:
                os.fsync(file.fileno())
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            os.replace(Path(temporary) / name, folder / name)


def _own_storage(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    shared = tensor.untyped_storage().nbytes() != tensor.nbytes
    return tensor.clone() if shared else tensor
