"""Our own format for U-Nets: a folder of `model.safetensors` (the names of `UNet.state_dict()`) and `config.json`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from di4c_lm.checkpoints.files import CONFIG_FILE, WEIGHTS_FILE, read_json, read_safetensors, write_checkpoint
from di4c_lm.checkpoints.weights import check_tensors
from di4c_lm.config import LatentConfig
from di4c_lm.config_cifar10 import UnetConfig
from di4c_lm.models.unet import UNet, is_latent

ARCHITECTURE = "di4c_lm.UNet"
FORMAT_VERSION = 1
_KEYS = {"architecture", "format_version", "model", "latent", "num_states", "shape", "extra"}


@dataclass(frozen=True, kw_only=True, eq=False)
class UnetWeights:
    """Tensors under the names of `UNet.state_dict()`, in the file's own dtypes, with the settings that make them a network."""

    tensors: dict[str, Tensor]
    model: UnetConfig
    latent: LatentConfig | None
    num_states: int
    shape: tuple[int, int, int]  # rows, columns, channels
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, network: UNet, state: Mapping[str, Tensor] | None = None) -> "UnetWeights":
        """Those of a network; `state` holds its tensors where its own are not whole or not the ones meant."""
        return cls(
            tensors=dict(network.state_dict() if state is None else state),
            model=network.config,
            latent=network.latent,
            num_states=network.num_states,
            shape=network.shape,
        )

    def check(self, source: object) -> None:
        """Raise a `ValueError` that names `source` and lists every missing, unknown, misshapen and non-floating tensor."""
        check_tensors(self.tensors, self._meta(source).state_dict(), source)

    def build(self, source: object) -> UNet:
        """The network, strictly loaded, in evaluation mode, in float32 (float64 stays). Raises as `check` does."""
        network = self._meta(source)
        check_tensors(self.tensors, network.state_dict(), source)
        double = any(tensor.dtype == torch.float64 for tensor in self.tensors.values())
        dtype = torch.float64 if double else torch.float32
        network.load_state_dict({k: v.to(dtype, copy=True) for k, v in self.tensors.items()}, strict=True, assign=True)
        return network.eval()

    def _meta(self, source: object) -> UNet:
        if self.model.res_blocks * len(self.model.multipliers) > len(self.tensors):  # before absurd depths are laid out
            raise ValueError(f"{source}: {self.model} cannot be made of {len(self.tensors)} tensors")
        try:
            with torch.device("meta"):
                return UNet(self.model, shape=self.shape, num_states=self.num_states, latent=self.latent)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


def write(folder: Path | str, weights: UnetWeights) -> None:
    """Write the folder, whole or not at all. Raises `ValueError` as `UnetWeights.check` does, `OSError` for a full disk."""
    weights.check(f"saving to {folder}")
    config = {
        "architecture": ARCHITECTURE,
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(weights.model),
        "latent": None if weights.latent is None else dataclasses.asdict(weights.latent),
        "num_states": weights.num_states,
        "shape": list(weights.shape),
        "extra": weights.extra,
    }
    write_checkpoint(Path(folder), weights.tensors, config)


def read(folder: Path | str) -> UnetWeights:
    """What `write` wrote. Raises `ValueError` that names the file, what was expected and what was found."""
    path = Path(folder) / CONFIG_FILE
    config = read_json(path)
    for key, wanted in (("architecture", ARCHITECTURE), ("format_version", FORMAT_VERSION)):
        if config.get(key) != wanted:
            raise ValueError(f"{path}: expected {key}={wanted!r}, found {config.get(key)!r}")
    if set(config) != _KEYS:
        lacking, unknown = sorted(_KEYS - set(config)), sorted(set(config) - _KEYS)
        raise ValueError(f"{path}: missing keys {lacking}, unknown keys {unknown}")
    numbers = [config["num_states"], *(config["shape"] if isinstance(config["shape"], list) else [None])]
    if len(numbers) != 4 or any(type(number) is not int or number < 1 for number in numbers) or numbers[0] < 2:
        raise ValueError(
            f"{path}: num_states={config['num_states']!r}, shape={config['shape']!r} are impossible: allowed are an integer of at "
            "least 2, and rows, columns and channels"
        )
    try:
        model = UnetConfig(**config["model"])
        latent = None if config["latent"] is None else LatentConfig(**config["latent"])
    except (ValidationError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the settings of the network are not ours: {error}") from error
    rows, columns, channels = config["shape"]
    weights = UnetWeights(
        tensors=read_safetensors(Path(folder) / WEIGHTS_FILE),
        model=model,
        latent=latent,
        num_states=config["num_states"],
        shape=(rows, columns, channels),
        extra=config["extra"],
    )
    weights.check(Path(folder) / WEIGHTS_FILE)
    return weights


def student_from_teacher(
    teacher: UNet, latent: LatentConfig, generator: torch.Generator, *, model: UnetConfig | None = None
) -> UNet:
    """A new U-Net with all of `teacher`'s weights and a λ path drawn from `generator`, which begins silent; in training mode.

    A teacher that is a mixture itself hands on its λ path too. `model` may differ from the teacher's in its dropout. Raises `ValueError`
    where shapes differ, all of them listed, or where the teacher's λ is of another kind than `latent`.
    """
    if teacher.latent is not None and teacher.latent != latent:
        raise ValueError(f"lambda={latent} differs from that of the teacher, which is a mixture with {teacher.latent}")
    given = {name: tensor.detach() for name, tensor in teacher.state_dict().items()}
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = UNet(model or teacher.config, shape=teacher.shape, num_states=teacher.num_states, latent=latent)
    own = student.state_dict()
    fresh = {} if teacher.latent is not None else {name: tensor for name, tensor in own.items() if is_latent(name)}
    check_tensors({**given, **fresh}, own, "the student of this teacher")
    reference = next(teacher.parameters())
    student.to(device=reference.device, dtype=reference.dtype)
    student.load_state_dict({**student.state_dict(), **given}, strict=True)
    return student.train()
