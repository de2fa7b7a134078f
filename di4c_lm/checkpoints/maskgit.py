"""MaskGIT's transformers: the `.pth` files of MaskGIT-pytorch and of Di4C's ImageNet students, and our own folders.

A `.pth` is {iter, global_epoch, model_state_dict, optimizer_state_dict}; of these the third alone is read. It states neither heads nor
codes: ours do so beside it, and for the published files 16 and 1,024 are known.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from di4c_lm.checkpoints.files import WEIGHTS_FILE, read_safetensors, write_pickle
from di4c_lm.checkpoints.inherit import inherit
from di4c_lm.checkpoints.own import check_sizes, read_config, read_settings, write_own
from di4c_lm.checkpoints.pickles import plain, read_pickle
from di4c_lm.checkpoints.weights import check_tensors
from di4c_lm.mixtures.latent import is_latent
from di4c_lm.mixtures.settings import LatentConfig
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig

ARCHITECTURE = "di4c_lm.MaskGit"
_STATE, _EXTRA = "model_state_dict", "di4c_lm"
_PUBLISHED_HEADS, _PUBLISHED_CODES, _PUBLISHED_ROWS = 16, 1024, 2026
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")
_SIZES = ("num_codes", "num_classes", "length")


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskGitWeights:
    """What every format is read into and written from: tensors under the names of `MaskGit.state_dict()`, and what makes them one."""

    tensors: Mapping[str, Tensor]
    model: MaskGitConfig
    num_codes: int
    num_classes: int
    length: int
    latent: LatentConfig | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, network: MaskGit, state: Mapping[str, Tensor] | None = None, extra: dict[str, Any] | None = None
    ) -> "MaskGitWeights":
        """Those of `network`, or `state` in their place."""
        return cls(
            tensors=network.state_dict() if state is None else state,
            model=network.config,
            num_codes=network.num_codes,
            num_classes=network.num_classes,
            length=network.length,
            latent=network.latent,
            extra=extra or {},
        )

    def check(self, source: object) -> None:
        """Raise a `ValueError` that names `source` and lists every missing, unknown, misshapen and non-floating tensor."""
        if self.model.num_blocks > len(self.tensors):  # before a network of absurd depth is laid out
            raise ValueError(f"{source}: {self.model.num_blocks} blocks cannot be made of {len(self.tensors)} tensors")
        check_tensors(self.tensors, self._bare(source).state_dict(), source)

    def build(self, source: object) -> MaskGit:
        """The network, strictly loaded, on the CPU, in float32 (float64 stays), in evaluation mode. Raises as `check` does."""
        self.check(source)
        network = self._bare(source)
        double = any(tensor.dtype == torch.float64 for tensor in self.tensors.values())
        dtype = torch.float64 if double else torch.float32
        network.load_state_dict({k: v.to(dtype, copy=True) for k, v in self.tensors.items()}, strict=True, assign=True)
        return network.eval()

    def _bare(self, source: object) -> MaskGit:
        try:
            with torch.device("meta"):
                return MaskGit(
                    self.model,
                    num_codes=self.num_codes,
                    num_classes=self.num_classes,
                    length=self.length,
                    latent=self.latent,
                )
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


def read(source: Path | str, *, num_heads: int | None = None, num_codes: int | None = None) -> MaskGitWeights:
    """The transformer in a `.pth` file, or in a folder of ours. `num_heads` and `num_codes` serve where a file states neither.

    Raises `ValueError` that names the file, what was expected and what was found, for one that is absent, truncated, of another format,
    carries code, or whose tensors do not make a network; nothing loads half.
    """
    path = Path(source).expanduser()
    return read_folder(path) if path.is_dir() else _read_pth(path, num_heads, num_codes)


def load_maskgit(source: Path | str, *, num_heads: int | None = None, num_codes: int | None = None) -> MaskGit:
    """The network that `read` finds, in evaluation mode. Raises as `read` does."""
    return read(source, num_heads=num_heads, num_codes=num_codes).build(source)


def _read_pth(path: Path, num_heads: int | None, num_codes: int | None) -> MaskGitWeights:
    content = read_pickle(path)
    state = content.get(_STATE)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path}: expected {_STATE!r}, a dict of tensors, found the keys {sorted(map(str, content))[:8]}"
        )
    tensors = {str(name).removeprefix("module."): tensor for name, tensor in state.items()}
    for name, dims in (("tok_emb.weight", 2), ("pos_emb", 3), ("transformer.layers.0.1.fn.net.0.weight", 2)):
        if name not in tensors or tensors[name].dim() != dims:
            raise ValueError(
                f"{path}: expected the tensor {name} of MaskGIT with {dims} axes, found {_found(tensors, name)}"
            )
    says = plain(content.get(_EXTRA, {}))
    num_rows, width = tensors["tok_emb.weight"].shape
    heads = num_heads or says.get("num_heads") or _PUBLISHED_HEADS
    codes = num_codes or says.get("num_codes") or (_PUBLISHED_CODES if num_rows == _PUBLISHED_ROWS else None)
    if codes is None:
        raise ValueError(
            f"{path}: {num_rows} tokens are codes, MASK, classes and the dropped class, and the file does not say how many are codes: "
            "give num_codes="
        )
    if num_rows - codes - 2 < 1:
        raise ValueError(f"{path}: {num_rows} tokens leave no class beside num_codes={codes}")
    if width % heads:
        raise ValueError(
            f"{path}: num_heads={heads} is impossible with the width {width} of the tensors: give num_heads="
        )
    model = MaskGitConfig(
        hidden_size=width,
        num_blocks=1 + max(int(found[1]) for found in map(_LAYER.match, tensors) if found),
        num_heads=heads,
        mlp_size=len(tensors["transformer.layers.0.1.fn.net.0.weight"]),
        dropout=says.get("dropout", 0.1),
    )
    mixture = any(is_latent(name) for name in tensors)
    weights = MaskGitWeights(
        tensors=tensors,
        model=model,
        num_codes=codes,
        num_classes=num_rows - codes - 2,
        length=tensors["pos_emb"].shape[1] - 1,
        latent=LatentConfig(law="uniform", path="token", inject_at=0) if mixture else None,
    )
    weights.check(path)
    return weights


def write_pth(path: Path, weights: MaskGitWeights) -> None:
    """Write a `.pth` that the published code reads, whole or not at all. Raises `ValueError` for a λ that it does not have."""
    latent = weights.latent
    if latent is not None and (latent.law, latent.path, latent.inject_at) != ("uniform", "token", 0):
        raise ValueError(
            f"a .pth of Di4C knows λ only as law=uniform, path=token, inject_at=0, found {latent}: save a folder of ours"
        )
    weights.check(f"saving to {path}")
    says = {"num_heads": weights.model.num_heads, "num_codes": weights.num_codes, "dropout": weights.model.dropout}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.tensors.items()}
    content = {"iter": 0, "global_epoch": 0, _STATE: state, "optimizer_state_dict": {}, _EXTRA: says}
    write_pickle(path, content)


def write_folder(folder: Path | str, weights: MaskGitWeights) -> None:
    """Write `model.safetensors` and `config.json`, whole or not at all. Raises as `MaskGitWeights.check` does."""
    sizes = {"num_codes": weights.num_codes, "num_classes": weights.num_classes, "length": weights.length}
    write_own(Path(folder), ARCHITECTURE, weights, **sizes)


def read_folder(folder: Path | str) -> MaskGitWeights:
    """What `write_folder` wrote. Raises `ValueError` as `read` does."""
    path = Path(folder)
    config = read_config(path, ARCHITECTURE, _SIZES)
    check_sizes(path, config, **dict.fromkeys(_SIZES, 1))
    sizes = {key: config[key] for key in _SIZES}
    model, latent = read_settings(path, config, MaskGitConfig)
    tensors = read_safetensors(Path(folder) / WEIGHTS_FILE)
    weights = MaskGitWeights(tensors=tensors, model=model, latent=latent, extra=config["extra"], **sizes)
    weights.check(Path(folder) / WEIGHTS_FILE)
    return weights


def student_of(
    teacher: MaskGit, latent: LatentConfig | None, generator: torch.Generator, *, model: MaskGitConfig | None = None
) -> MaskGit:
    """A new network with all of `teacher`'s weights and a λ path drawn from `generator`; the global generator is left alone.

    A teacher that is a mixture itself hands on its λ path too. `model` may differ from the teacher's in what has no shape, such as
    dropout. In training mode, every parameter trainable. Raises `ValueError` where shapes or the kind of λ differ.
    """
    return inherit(
        teacher,
        lambda: MaskGit(
            model or teacher.config,
            num_codes=teacher.num_codes,
            num_classes=teacher.num_classes,
            length=teacher.length,
            latent=latent,
        ),
        latent,
        generator,
        is_latent,
    )


def _found(tensors: Mapping[str, Tensor], name: str) -> str:
    if name in tensors:
        return f"one of shape {tuple(tensors[name].shape)}"
    return f"{len(tensors)} others, such as {', '.join(list(tensors)[:3])}" if tensors else "no tensor"
