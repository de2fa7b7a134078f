"""Any checkpoint of the field by a path or a hub name: the format is recognised, the tensors are checked, the network is built."""

import re
from pathlib import Path

from di4c_lm.checkpoints import di4c, lightning, mdlm, sdtt
from di4c_lm.checkpoints.files import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE
from di4c_lm.checkpoints.hub import OFFLINE_WAY, snapshot
from di4c_lm.checkpoints.lightning import WhichWeights
from di4c_lm.checkpoints.weights import Loaded, Weights
from di4c_lm.core.files import read_json

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


def load_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    weights: WhichWeights = "ema",
    cache_dir: str | Path | None = None,
    num_heads: int | None = None,
    length: int | None = None,
) -> Loaded:
    """The network in `source`: a folder or file of MDLM, SDTT, Di4C or ours, or a hub name with a `revision`.

    In evaluation mode, on the CPU, in float32. `weights` matters where a file holds both; `num_heads` and `length` where it
    states neither.

    Raises:
        ValueError: absent, truncated, of no known format, carrying code, or with tensors missing, unknown or misshapen; it names
            the path, what was expected and what was found. Nothing loads half.
        ConnectionError: the hub does not answer; it names the folder that would do instead.
    """
    found = read_checkpoint(
        source, revision=revision, weights=weights, cache_dir=cache_dir, num_heads=num_heads, length=length
    )
    return found.build(source)


def read_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    weights: WhichWeights = "ema",
    cache_dir: str | Path | None = None,
    num_heads: int | None = None,
    length: int | None = None,
) -> Weights:
    """As `load_checkpoint`, before the network is built: tensors in the file's own dtypes, with their settings."""
    path = Path(source).expanduser()
    if path.is_file() and path.name not in (WEIGHTS_FILE, PICKLE_FILE, CONFIG_FILE):
        if path.suffix == ".safetensors":
            raise ValueError(f"{path}: expected {WEIGHTS_FILE} with a {CONFIG_FILE} beside it, or a .ckpt")
        return lightning.read(path, weights=weights, num_heads=num_heads, length=length)
    if path.is_file():
        path = path.parent
    if not path.is_dir():
        if not _HUB_NAME.fullmatch(str(source)) or path.suffix in _FILE_SUFFIXES:
            raise ValueError(f"{source}: expected a file, a folder or a hub name (owner/model), found nothing there")
        path = snapshot(str(source), revision, cache_dir)
    return _read_folder(path, num_heads=num_heads, length=length)


def _read_folder(folder: Path, *, num_heads: int | None, length: int | None) -> Weights:
    if not (folder / CONFIG_FILE).is_file():
        inside = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ValueError(
            f"{folder}: expected {WEIGHTS_FILE} and {CONFIG_FILE}, found {inside}. It takes: {OFFLINE_WAY}"
        )
    config = read_json(folder / CONFIG_FILE)
    if config.get("architecture") == di4c.ARCHITECTURE:
        return di4c.read(folder)
    if mdlm.recognises(config):
        return mdlm.read(folder, num_heads=num_heads, length=length)
    if sdtt.recognises(config):
        return sdtt.read(folder, num_heads=num_heads, length=length)
    raise ValueError(
        f"{folder / CONFIG_FILE}: expected the config of MDLM (model_type=mdlm), of SDTT (model.n_blocks) or ours "
        f"(architecture={di4c.ARCHITECTURE}), found model_type={config.get('model_type')!r} and the keys {sorted(config)}"
    )
