"""The frame of our own formats: a folder of `model.safetensors` and a `config.json` that says which network it is of."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from pydantic import ValidationError
from torch import Tensor

from di4c_lm.checkpoints.files import CONFIG_FILE, write_checkpoint
from di4c_lm.core.files import read_json
from di4c_lm.core.settings import build
from di4c_lm.mixtures.settings import LatentConfig

FORMAT_VERSION = 1
_FRAME = {"architecture", "format_version", "model", "latent", "extra"}
Model = TypeVar("Model")


@runtime_checkable
class OwnWeights(Protocol):
    """Tensors with the settings that make a network of them."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Under the names of the network's `state_dict`."""
        ...

    @property
    def model(self) -> Any:
        """A dataclass."""
        ...

    @property
    def latent(self) -> LatentConfig | None:
        """λ of a student."""
        ...

    @property
    def extra(self) -> dict[str, Any]:
        """What else is told of it."""
        ...

    def check(self, source: object) -> None:
        """Raise `ValueError` where the tensors are not those of the network."""
        ...


def write_own(folder: Path, architecture: str, weights: OwnWeights, **sizes: int | list[int]) -> None:
    """Write the folder, whole or not at all. Raises as `weights.check` does, and `OSError` for a full disk."""
    weights.check(f"saving to {folder}")
    config = {
        "architecture": architecture,
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(weights.model),
        "latent": None if weights.latent is None else dataclasses.asdict(weights.latent),
        "extra": weights.extra,
        **sizes,
    }
    write_checkpoint(folder, weights.tensors, config)


def read_config(folder: Path, architecture: str, sizes: Collection[str]) -> dict[str, Any]:
    """`config.json` of a network of `architecture`, which holds the keys `sizes` beside the frame's.

    Raises `ValueError` that names the file, what was expected and what was found.
    """
    path = folder / CONFIG_FILE
    config = read_json(path)
    if config.get("architecture") != architecture:
        raise ValueError(f"{path}: expected architecture={architecture!r}, found {config.get('architecture')!r}")
    if config.get("format_version") != FORMAT_VERSION:
        found = config.get("format_version")
        raise ValueError(f"{path}: expected format_version={FORMAT_VERSION}, found {found!r}; another di4c-lm wrote it")
    known = _FRAME | set(sizes)
    if set(config) != known:
        lacking, unknown = sorted(known - set(config)), sorted(set(config) - known)
        raise ValueError(f"{path}: missing keys {lacking}, unknown keys {unknown}")
    return config


def check_sizes(folder: Path, config: Mapping[str, Any], **least: int) -> None:
    """Raise `ValueError` unless each of these keys holds an integer that is at least so large."""
    for key, low in least.items():
        if type(config[key]) is not int or config[key] < low:
            raise ValueError(
                f"{folder / CONFIG_FILE}: {key}={config[key]!r} is impossible: allowed is an integer of at least {low}"
            )


def read_settings(folder: Path, config: Mapping[str, Any], model: type[Model]) -> tuple[Model, LatentConfig | None]:
    """The network's settings and those of its λ. Raises `ValueError` for settings that are not ours."""
    try:
        latent = None if config["latent"] is None else LatentConfig(**config["latent"])
        return build(model, config["model"]), latent
    except (ValidationError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE}: the settings of the network are not ours: {error}") from error
