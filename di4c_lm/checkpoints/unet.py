"""Our own format for U-Nets: a folder of `model.safetensors` (the names of `UNet.state_dict()`) and `config.json`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from di4c_lm.checkpoints.files import CONFIG_FILE, WEIGHTS_FILE, read_safetensors
from di4c_lm.checkpoints.inherit import inherit
from di4c_lm.checkpoints.own import read_config, read_settings, write_own
from di4c_lm.checkpoints.weights import check_tensors
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.unet import UNet, UnetConfig, is_latent

ARCHITECTURE = "di4c_lm.UNet"


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
    write_own(Path(folder), ARCHITECTURE, weights, num_states=weights.num_states, shape=list(weights.shape))


def read(folder: Path | str) -> UnetWeights:
    """What `write` wrote. Raises `ValueError` that names the file, what was expected and what was found."""
    path = Path(folder) / CONFIG_FILE
    config = read_config(Path(folder), ARCHITECTURE, ("num_states", "shape"))
    numbers = [config["num_states"], *(config["shape"] if isinstance(config["shape"], list) else [None])]
    if len(numbers) != 4 or any(type(number) is not int or number < 1 for number in numbers) or numbers[0] < 2:
        raise ValueError(
            f"{path}: num_states={config['num_states']!r}, shape={config['shape']!r} are impossible: allowed are an integer of at "
            "least 2, and rows, columns and channels"
        )
    model, latent = read_settings(Path(folder), config, UnetConfig)
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
    return inherit(
        teacher,
        lambda: UNet(model or teacher.config, shape=teacher.shape, num_states=teacher.num_states, latent=latent),
        latent,
        generator,
        is_latent,
    )
