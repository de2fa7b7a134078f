"""What every format is read into and written from: tensors with the settings that make a network or a mixture of them."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from di4c_lm.mixtures.base import Mixture, MixtureSettings, NoMixture
from di4c_lm.networks.base import Network, check_tensors
from di4c_lm.networks.decoder import Decoder, DecoderConfig
from di4c_lm.networks.dit import DIT, DitConfig
from di4c_lm.networks.maskgit import MaskGit, MaskGitConfig
from di4c_lm.networks.unet import UNet, UnetConfig

WhichWeights = Literal["ema", "raw"]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A class of networks, its settings, and the sizes that a file states, each with the least that it can be (None: see its reader)."""

    network: type[Network]
    model: type[Any]
    sizes: Mapping[str, int | None]
    keeps_dtype: bool = False  # whether it may be run in the narrow dtype of a file


ARCHITECTURES = {
    "di4c_lm.DIT": Architecture(network=DIT, model=DitConfig, sizes={"num_states": 2, "length": 1}),
    "di4c_lm.Decoder": Architecture(
        network=Decoder,
        model=DecoderConfig,
        sizes={"num_states": 2, "num_rows": 2, "mask_id": 0, "length": 1},
        keeps_dtype=True,
    ),
    "di4c_lm.MaskGit": Architecture(
        network=MaskGit, model=MaskGitConfig, sizes={"num_codes": 1, "num_classes": 1, "length": 1}
    ),
    "di4c_lm.UNet": Architecture(network=UNet, model=UnetConfig, sizes={"num_states": 2, "shape": None}),
}


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What a reader is given: which weights, where a file holds both, and what it does not state itself."""

    weights: WhichWeights = "ema"
    num_heads: int | None = None
    length: int | None = None  # positions of a text
    mask_id: int | None = None  # of a decoder
    shift: bool | None = (
        None  # of a decoder: whether the logits of a token stand one position before it; absent: as its format has it
    )
    num_codes: int | None = None  # of images as codes
    shape: tuple[int, int, int] = (32, 32, 3)  # rows, columns, channels of images
    num_states: int = 256  # levels of their pixels


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Where the network's tensors of an exported head are, and what they must be."""

    path: str  # as the file says it: relative to its folder, absolute, or a hub name
    fingerprint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """Tensors under the names of `Network.tensors` or `Mixture.tensors`, in the file's own dtypes.

    With `backbone` they are those of λ alone; the network's are there.
    """

    tensors: Mapping[str, Tensor]
    architecture: str
    model: Any
    sizes: Mapping[str, Any]
    mixture: MixtureSettings = field(default_factory=NoMixture)
    extra: dict[str, Any] = field(default_factory=dict)
    backbone: Backbone | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, shapes and values in float32: the same of one model in any format and dtype that holds it exactly."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)} ".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @classmethod
    def of(
        cls,
        denoiser: Network | Mixture,
        state: Mapping[str, Tensor] | None = None,
        *,
        length: int | None = None,
        extra: dict[str, Any] | None = None,
        backbone: str | None = None,
    ) -> "Weights":
        """Those of a network or a mixture, for a file.

        Args:
            state: parameters by name where the denoiser's own are not whole (ZeRO-3) or not the ones meant (EMA).
            length: positions of a text.
            backbone: the path of the frozen network's checkpoint, to export λ alone; ignored where the network is trained.
        """
        network: Network = denoiser.network if isinstance(denoiser, Mixture) else denoiser
        head = backbone is not None and isinstance(denoiser, Mixture) and denoiser.shares_backbone
        whole = denoiser.tensors(state)
        return cls(
            tensors=denoiser.tensors(state, whole=False) if head else whole,
            architecture=next(name for name, one in ARCHITECTURES.items() if one.network is type(network)),
            model=network.config,
            sizes={**network.sizes, **({} if length is None else {"length": length})},
            mixture=denoiser.settings if isinstance(denoiser, Mixture) else NoMixture(),
            extra=extra or {},
            backbone=Backbone(path=backbone or "", fingerprint=fingerprint_of(denoiser, whole)) if head else None,
        )

    def check(self, source: object) -> None:
        """Raise a `ValueError` that names `source` and lists every missing, unknown, misshapen and non-floating tensor."""
        denoiser = self.blank(source)
        check_tensors(self.tensors, denoiser.tensors(whole=self.backbone is None), source)

    def build(self, source: object, *, keep_dtype: bool = False) -> Any:
        """The network or mixture, strictly loaded, on the CPU, in float32 (float64 stays), in evaluation mode. Raises as `check` does.

        With `keep_dtype` a decoder without λ stays in the dtype of its file.
        """
        assert self.backbone is None, "the network's tensors are elsewhere"
        denoiser = self.blank(source)
        check_tensors(self.tensors, denoiser.tensors(), source)
        dtypes = {tensor.dtype for tensor in self.tensors.values()}
        dtype = torch.float64 if torch.float64 in dtypes else torch.float32
        plain = isinstance(self.mixture, NoMixture) and ARCHITECTURES[self.architecture].keeps_dtype
        if keep_dtype and plain and dtypes == {torch.bfloat16}:
            dtype = torch.bfloat16
        denoiser.load({name: tensor.to(dtype, copy=True) for name, tensor in self.tensors.items()}, assign=True)
        return denoiser.eval()

    def blank(self, source: object) -> Any:
        """The network or mixture without storage: names and shapes, and nothing drawn. Raises `ValueError` for impossible settings."""
        depth = self.model.depth
        if self.backbone is None and depth > len(self.tensors):  # before a network of absurd depth is laid out
            raise ValueError(f"{source}: {depth} blocks cannot be made of {len(self.tensors)} tensors")
        kind = ARCHITECTURES[self.architecture].network
        sizes = {name: size for name, size in self.sizes.items() if name != "length" or kind not in (DIT, Decoder)}
        try:
            with torch.device("meta"), _Undrawn():
                return self.mixture.fresh(kind, self.model, sizes)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    def trimmed(self, num_states: int) -> "Weights":
        """Without the rows of a vocabulary that was padded beyond `num_states` to a round size; any other stays as it is.

        Trainers pad to multiples of 64 or 128. No text has these rows, so nothing that is said of text changes but for the share of
        probability that the network left on them. A decoder keeps its rows; those that no token stands for are no states of it.
        """
        if "num_rows" in self.sizes:
            return replace(self, sizes={**self.sizes, "num_states": min(num_states, self.sizes["num_rows"])})
        padded = self.sizes.get("num_states", 0)
        if not num_states < padded <= math.ceil(num_states / 128) * 128 or padded % 64:
            return self
        found = replace(self, sizes={**self.sizes, "num_states": num_states})
        wanted = found.blank("").tensors()
        tensors = {
            name: tensor[:num_states] if name in wanted and tensor.shape != wanted[name].shape else tensor
            for name, tensor in self.tensors.items()
        }
        return replace(found, tensors=tensors)

    def joined(self, backbone: "Weights", source: object) -> "Weights":
        """These, of λ alone, with the network's, as one. Raises `ValueError` for a network that is not the one it was trained on."""
        assert self.backbone is not None
        own = self.blank(source)
        network = {name: tensor for name, tensor in backbone.tensors.items() if not own.owns(name)}
        found = fingerprint(network)
        if found != self.backbone.fingerprint or backbone.architecture != self.architecture:
            raise ValueError(
                f"{source}: trained on the network with fingerprint {self.backbone.fingerprint}, that of {self.backbone.path} has {found}"
            )
        return replace(self, tensors={**network, **self.tensors}, backbone=None)


def averaged(shadow: object, raw: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """The EMA by name: a list in the order of the raw parameters. Raises `ValueError` that says `what` does not fit them."""
    if not isinstance(shadow, list) or len(shadow) != len(raw):
        found = f"{len(shadow)} entries" if isinstance(shadow, list) else type(shadow).__name__
        raise ValueError(f"{what} to be a list of {len(raw)} tensors, one a parameter, found {found}")
    for (name, tensor), average in zip(raw.items(), shadow, strict=True):
        if not isinstance(average, Tensor) or average.shape != tensor.shape:
            found = tuple(average.shape) if isinstance(average, Tensor) else type(average).__name__
            raise ValueError(f"{what} to hold the average of {name}, of shape {tuple(tensor.shape)}, found {found}")
    return dict(zip(raw, shadow, strict=True))


def fingerprint_of(denoiser: Any, tensors: Mapping[str, Tensor]) -> str:
    """`fingerprint` of the tensors that are not λ's."""
    return fingerprint({name: tensor for name, tensor in tensors.items() if not denoiser.owns(name)})


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Sixteen hex digits that stand for tensors: names, shapes and values in float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class _Undrawn(TorchFunctionMode):
    """In the block initialisers leave tensors as they are: where there is no storage, they would load PyTorch's compiler to do nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
