"""Golden files: arrays and a JSON string `meta` in one `.npz`, weights in a `.safetensors` beside it; and the comparison with them."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """|ours - theirs| <= atol + rtol |theirs|, entry by entry."""

    atol: float = 0.0
    rtol: float = 0.0

    def __str__(self) -> str:
        return f"{self.atol:.1e} + {self.rtol:.1e} |x|"


@dataclass(frozen=True)
class Computed:
    """Our value of one array of a case, and how near it has to be; or of what `view` makes of the array."""

    array: str
    value: Tensor
    tolerance: Tolerance
    view: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    array: str
    abs_error: float
    rel_error: float
    tolerance: Tolerance
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Golden:
    """One golden file, read lazily."""

    path: Path
    label: str = ""

    @property
    def name(self) -> str:
        """The case's name: its label, or else the file's stem."""
        return self.label or self.path.stem

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Every array but `meta`."""
        with np.load(self.path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name != "meta"}

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The hyper-parameters."""
        with np.load(self.path, allow_pickle=False) as file:
            return json.loads(str(file["meta"]))

    def tensor(self, name: str) -> Tensor:
        """An array, by name; `KeyError` names one that is absent."""
        return torch.from_numpy(self.arrays[name])

    def weights(self) -> dict[str, Tensor]:
        """The tensors of the `.safetensors` of the same name."""
        return load_file(self.path.with_suffix(".safetensors"))


def compare(golden: Golden, computed: Computed) -> Row:
    """Largest absolute and relative error; a scalar of the file stands for every entry, as the reference's plain `0` does."""
    ours = computed.value.detach().double().numpy()
    row = {"case": golden.name, "array": computed.array, "tolerance": computed.tolerance}
    if computed.array not in golden.arrays:
        return Row(**row, abs_error=np.inf, rel_error=np.inf, ok=False, note="not in the file")
    theirs = golden.arrays[computed.array].astype(np.float64)
    if computed.view is not None:
        theirs = computed.view(torch.from_numpy(theirs)).numpy()
    if theirs.shape not in (ours.shape, ()):
        note = f"shape {theirs.shape}, ours is {ours.shape}"
        return Row(**row, abs_error=np.inf, rel_error=np.inf, ok=False, note=note)
    error = np.abs(ours - theirs)
    size = np.broadcast_to(np.abs(theirs), error.shape)
    with np.errstate(over="ignore"):
        relative = np.divide(error, size, out=np.where(error == 0, 0.0, np.inf), where=size > 0)
    ok = bool((error <= computed.tolerance.atol + computed.tolerance.rtol * size).all())
    return Row(**row, abs_error=_largest(error), rel_error=_largest(relative), ok=ok)


def _largest(values: np.ndarray) -> float:
    return float(values.max()) if values.size else 0.0


def sub_cases(golden: Golden) -> Iterator[tuple[str, dict[str, Any]]]:
    """The runs `cNN` of a loss case with their settings."""
    yield from golden.meta["cases"].items()
