"""Any checkpoint of a domain by a path or a hub name: the format is recognised, the tensors are checked, the network is built."""

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from di4c_lm.checkpoints import (
    bd3lm,
    decoders,
    dream,
    duo,
    lightning,
    llada,
    llama,
    maskgit,
    mdlm,
    own,
    radd,
    sdtt,
    sedd,
    tauldr,
)
from di4c_lm.checkpoints.files import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE
from di4c_lm.checkpoints.hub import OFFLINE_WAY, snapshot
from di4c_lm.checkpoints.weights import Hints, Weights
from di4c_lm.core.files import read_json

DomainName = Literal["text", "pixels", "codes"]
# The formats of a domain, each a module with `recognises(path)`, `read(path, hints)` and most with `write(path, weights)`.
FORMATS: dict[DomainName, tuple[ModuleType, ...]] = {
    "text": (own, mdlm, bd3lm, duo, sedd, radd, llada, dream, llama, sdtt, lightning),
    "pixels": (own, tauldr),
    "codes": (own, maskgit),
}
ARCHITECTURES: dict[DomainName, tuple[str, ...]] = {
    "text": ("di4c_lm.DIT", decoders.ARCHITECTURE),
    "pixels": ("di4c_lm.UNet",),
    "codes": ("di4c_lm.MaskGit",),
}
_STUDENT = "student"  # where a run leaves it
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


def load_checkpoint(source: str | Path, domain: DomainName = "text", **options: Any) -> Any:
    """The network or mixture in `source`, in evaluation mode, on the CPU, in float32. Arguments and errors as of `read_checkpoint`."""
    return read_checkpoint(source, domain, **options).build(source)


def read_checkpoint(
    source: str | Path,
    domain: DomainName = "text",
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    **hints: Any,
) -> Weights:
    """The tensors, in the file's own dtypes, and settings in `source`; of an exported head with those of its network.

    Args:
        source: a folder or file in one of the domain's formats, or a hub name with a `revision`.
        hints: see `Hints`: `weights` where a file holds both, and what it does not state itself.

    Raises:
        ValueError: absent, truncated, of no known format, carrying code, or with tensors missing, unknown or misshapen; it names
            the path, what was expected and what was found. Nothing loads half.
        ConnectionError: the hub does not answer; it names the folder that would do instead.
    """
    path = find(source, revision, cache_dir)
    weights = _format_of(path, domain).read(path, Hints(**hints))
    if weights.architecture not in ARCHITECTURES[domain]:
        expected = " or ".join(map(repr, ARCHITECTURES[domain]))
        raise ValueError(f"{path}: expected architecture={expected}, found {weights.architecture!r}")
    if weights.backbone is None:
        return weights
    beside = path / weights.backbone.path
    stated = {"num_heads": getattr(weights.model, "num_heads", None), **weights.sizes, **hints}
    known = {name: value for name, value in stated.items() if name in Hints.__dataclass_fields__}
    backbone = read_checkpoint(
        beside if beside.exists() else weights.backbone.path, domain, cache_dir=cache_dir, **known
    )
    return weights.joined(replace(backbone, mixture=weights.mixture), path)


def recognise(source: str | Path, domain: DomainName, revision: str | None = None) -> None:
    """Raise as `read_checkpoint` does where there is nothing at `source`, or no checkpoint of the domain by its form; no tensor is read."""
    _format_of(find(source, revision), domain)


def domain_of(path: Path) -> DomainName:
    """The domain of the checkpoint at a local path. Raises `ValueError` where it is of no known format."""
    if own.recognises(path):
        domain_by: dict[str, DomainName] = {name: domain for domain, names in ARCHITECTURES.items() for name in names}
        named = read_json(path / CONFIG_FILE)["architecture"]
        if named in domain_by:
            return domain_by[named]
    for domain, formats in FORMATS.items():
        if any(one.recognises(path) for one in formats):
            return domain
    _format_of(path, "text")
    raise AssertionError("a format that is none has been refused")


def stated_length(folder: Path) -> int | None:
    """The tokens a sequence that the `config.json` of a text checkpoint states, if it does; no tensor is read."""
    path = folder / CONFIG_FILE
    try:
        config = read_json(path) if path.is_file() else {}
    except ValueError:  # the reader of the checkpoint will say what is wrong with it
        return None
    model = config.get("model")
    stated = [
        config.get("length"),
        config.get("model_length"),
        model.get("length") if isinstance(model, dict) else None,
    ]
    return next((one for one in stated if type(one) is int and one >= 1), None)


def stated_mask(folder: Path) -> int | None:
    """The id of the mask of a decoder's folder, of ours or of its format, if it says one; no tensor is read."""
    path = folder / CONFIG_FILE
    try:
        config = read_json(path) if path.is_file() else {}
        if config.get("architecture") == decoders.ARCHITECTURE:
            return config.get("mask_id")
        given = next((one.FORMAT for one in (llada, dream, llama) if one.recognises(folder)), None)
        return None if given is None else decoders.mask_of(folder, config.get(given.keys["mask_id"]), None)
    except ValueError:  # the reader of the checkpoint will say what is wrong with it
        return None


def find(source: str | Path, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """The local folder or file of a path or hub name; of a run's folder, that of its student. Raises as `read_checkpoint` does."""
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".safetensors" and path.name != WEIGHTS_FILE:
        raise ValueError(f"{path}: expected {WEIGHTS_FILE} with a {CONFIG_FILE} beside it, or a .ckpt")
    if path.is_file():
        return path.parent if path.name in (WEIGHTS_FILE, PICKLE_FILE, CONFIG_FILE) else path
    if path.is_dir():
        return path / _STUDENT if _is_run(path) else path
    if not _HUB_NAME.fullmatch(str(source)) or path.suffix in _FILE_SUFFIXES or path.parent.is_dir():
        raise ValueError(f"{source}: expected a file, a folder or a hub name (owner/model), found nothing there")
    return snapshot(str(source), revision, cache_dir)


def _is_run(folder: Path) -> bool:
    return not (folder / CONFIG_FILE).exists() and (folder / _STUDENT / CONFIG_FILE).is_file()


def _format_of(path: Path, domain: DomainName) -> ModuleType:
    for one in FORMATS[domain]:
        if one.recognises(path):
            return one
    names = ", ".join(one.__name__.rpartition(".")[2] for one in FORMATS[domain])
    if path.is_file():
        raise ValueError(f"{path}: expected a checkpoint in one of the formats {names}, found another file")
    inside = ", ".join(sorted(one.name for one in path.iterdir())) or "nothing"
    if not (path / CONFIG_FILE).is_file():
        raise ValueError(f"{path}: expected {WEIGHTS_FILE} and {CONFIG_FILE}, found {inside}. It takes: {OFFLINE_WAY}")
    if domain == "text":
        decoders.refuse_unknown(path / CONFIG_FILE, llada.FORMAT, dream.FORMAT, llama.FORMAT)
    raise ValueError(
        f"{path / CONFIG_FILE}: expected the config of one of the formats {names}: model_type=mdlm, bd3lm or DUO, model.n_blocks or "
        "architecture"
    )
