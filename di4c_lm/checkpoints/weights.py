"""The tensors of a DiT with the settings that make them one, checked name by name and shape by shape."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.dit import DIT, DitConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A network in evaluation mode on the CPU, the number of positions it was trained for, and what else its file says."""

    network: DIT
    length: int
    extra: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """What every format is read into and written from: tensors under the names of `DIT.state_dict()`, in the file's own dtypes."""

    tensors: dict[str, Tensor]
    model: DitConfig
    latent: LatentConfig | None
    num_states: int
    length: int
    extra: dict[str, Any] = field(default_factory=dict)

    def check(self, source: object) -> None:
        """Raise a `ValueError` that names `source` and lists every missing, unknown, misshapen and non-floating tensor."""
        if self.model.num_blocks > len(self.tensors):  # before a network of absurd depth is laid out
            raise ValueError(f"{source}: {self.model.num_blocks} blocks cannot be made of {len(self.tensors)} tensors")
        try:
            network = meta_dit(self.model, self.num_states, self.latent)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        check_tensors(self.tensors, network.state_dict(), source)

    def build(self, source: object) -> Loaded:
        """The network, strictly loaded, in float32 (float64 stays). Raises as `check` does."""
        self.check(source)
        network = meta_dit(self.model, self.num_states, self.latent)
        double = any(tensor.dtype == torch.float64 for tensor in self.tensors.values())
        dtype = torch.float64 if double else torch.float32
        network.load_state_dict({k: v.to(dtype, copy=True) for k, v in self.tensors.items()}, strict=True, assign=True)
        return Loaded(network=network.eval(), length=self.length, extra=self.extra)


def meta_dit(model: DitConfig, num_states: int, latent: LatentConfig | None) -> DIT:
    """A DIT without storage: its names and shapes, and no draw from any generator."""
    with torch.device("meta"):
        return DIT(model, num_states=num_states, latent=latent)


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: object) -> None:
    """Compare names and shapes; raise one `ValueError` that names `source` and lists all that differs."""
    complaints = [f"missing: {name} {_shape(expected[name])}" for name in expected if name not in found]
    complaints += [f"unknown: {name} {_shape(found[name])}" for name in found if name not in expected]
    for name in expected:
        if name not in found:
            continue
        if found[name].shape != expected[name].shape:
            complaints.append(f"misshapen: {name} is {_shape(found[name])}, expected {_shape(expected[name])}")
        elif not found[name].is_floating_point():
            complaints.append(f"not floating-point: {name} is {found[name].dtype}")
    if complaints:
        raise ValueError(f"{source}: {len(complaints)} tensors do not fit the network:\n  " + "\n  ".join(complaints))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
