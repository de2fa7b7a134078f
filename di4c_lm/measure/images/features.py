"""Images as vectors: what a network makes of them. Which network it was stands in every result.

Axes: N images, H rows, W columns, C channels, F features, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from di4c_lm.core.files import read_json
from di4c_lm.core.retry import foreign_reason
from di4c_lm.core.terminal import not_installed
from di4c_lm.measure.render.manifest import weights_hash

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Embedded:
    """Features of images and, where the network has classes, their probabilities."""

    features: Float[ndarray, "N F"]
    probabilities: Float[ndarray, "N K"] | None


@final
class FeatureNet:
    """A network that turns bytes into features: `forward` takes (n, 3 or 1, H, W) on `device` to features (n, F) and logits (n, K) or None.

    `facts` say which one, JSON-ready: at least `name` and `sha256` of its weights.
    """

    def __init__(
        self,
        forward: Callable[[UInt8[Tensor, "n C H W"]], tuple[Tensor, Tensor | None]],
        facts: Mapping[str, Any],
        *,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> None:
        self.facts = facts
        self._forward = forward
        self._batch_size = batch_size
        self._device = device

    @torch.inference_mode()
    def embed(self, images: UInt8[ndarray, "N H W C"]) -> Embedded:
        """Features of images of 0..255, the same for an image whatever stands beside it.

        Raises `ValueError` for no images and for features that are not finite.
        """
        if len(images) == 0:
            raise ValueError("features need at least one image, found none")
        features, probabilities = [], []
        for start in range(0, len(images), self._batch_size):
            planes_nCHW = np.ascontiguousarray(images[start : start + self._batch_size].transpose(0, 3, 1, 2))
            found, logits = self._forward(torch.from_numpy(planes_nCHW).to(self._device))
            features.append(found.double().cpu().numpy())
            if logits is not None:
                probabilities.append(logits.double().softmax(1).cpu().numpy())
        whole = np.concatenate(features)
        if not np.isfinite(whole).all():
            raise ValueError(f"the features of {self.facts.get('name')} are not finite")
        return Embedded(features=whole, probabilities=np.concatenate(probabilities) if probabilities else None)


def inception_features(
    path: Path | None = None, *, batch_size: int = 32, device: torch.device | str = "cpu"
) -> FeatureNet:
    """The Inception of published FIDs: 2,048 pool features, and class probabilities from logits without bias, by torch-fidelity.

    Its weights are `path`, else the file that torch-fidelity keeps in torch's hub folder; nothing is downloaded. Raises `ValueError` where
    they or the package are missing, saying where the file is looked for and where it comes from, and for a damaged file.
    """
    file = path or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        raise ValueError(
            f"features='inception': there are no weights at {file}, and none are downloaded: get them from {INCEPTION_URL} "
            "and put them there, or name another network by features=<folder>, or take features=classifier"
        )
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        reason = (
            not_installed("torch_fidelity") if isinstance(error, ModuleNotFoundError) else f"torch-fidelity: {error}"
        )
        raise ValueError(f"features must be classifier or a folder, got 'inception': {reason}") from error
    try:
        torch.load(
            file, map_location="cpu", weights_only=True
        )  # whole, and tensors only: the extractor itself does not ask
        network: Any = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(file))
    except Exception as error:
        raise ValueError(f"features='inception': {file} holds no Inception weights: {error}") from error
    network.to(device)

    def forward(planes: UInt8[Tensor, "n C H W"]) -> tuple[Tensor, Tensor]:
        return network(planes.expand(-1, 3, -1, -1))

    facts = {"name": "inception", "kind": "torch-fidelity, Inception v3 of 2015-12-05", "sha256": weights_hash(file)}
    return FeatureNet(forward, facts, batch_size=batch_size, device=device)


def folder_features(path: Path, *, batch_size: int = 32, device: torch.device | str = "cpu") -> FeatureNet:
    """A vision model of transformers in a folder (config.json, safetensors): its pooled output, else the mean of its last hidden states.

    Images are resized (bicubic, antialiased) to the size its config or preprocessor_config.json tells, scaled to 0..1 and standardised with
    the latter's mean and spread, ImageNet's where it tells none. Raises `ValueError` with the folder's name: absent, without config or
    weights, weights missing, or a model that does not take images.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    expected = "a folder with config.json and model.safetensors of a vision model, 'classifier' or 'inception'"
    if not (path / "config.json").is_file():
        raise ValueError(f"features={str(path)!r}: expected {expected}; found no config.json there")
    try:
        loaded: Any = AutoModel.from_pretrained(
            str(path), use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"features={str(path)!r}: expected {expected}; found: {foreign_reason(error)}") from error
    model, info = loaded
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise ValueError(f"features={str(path)!r}: expected every weight, found none for {missing[:8]}")
    pooled = not any("pooler" in name for name in info["missing_keys"])
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise ValueError(
            f"features={str(path)!r}: expected a vision model, found one that reads {model.main_input_name}"
        )
    model.eval().requires_grad_(False).to(device)
    said = path / "preprocessor_config.json"
    preprocessor = read_json(said) if said.is_file() else {}
    size = _image_size(model.config, preprocessor)
    mean, std = (
        torch.tensor(preprocessor.get(name) or default, device=device).view(1, -1, 1, 1)
        for name, default in (("image_mean", _IMAGENET_MEAN), ("image_std", _IMAGENET_STD))
    )

    def forward(planes: UInt8[Tensor, "n C H W"]) -> tuple[Tensor, None]:
        pixels = planes.expand(-1, 3, -1, -1).float() / 255
        if size is not None and tuple(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        out = model(pixel_values=(pixels - mean) / std)
        return _pooled(out, trained=pooled), None

    facts = {"name": str(path), "kind": f"transformers, {type(model).__name__}", "sha256": weights_hash(path)}
    return FeatureNet(forward, {**facts, "image_size": size}, batch_size=batch_size, device=device)


def _pooled(out: Any, *, trained: bool) -> Tensor:
    """(n, F): the pooler's output where it has been trained, else the mean over positions or pixels."""
    pooled = getattr(out, "pooler_output", None)
    if pooled is not None and trained:
        return pooled.flatten(1)
    hidden = out.last_hidden_state
    return hidden.mean(1) if hidden.dim() == 3 else hidden.flatten(2).mean(2)


def _image_size(config: Any, preprocessor: Mapping[str, Any]) -> tuple[int, int] | None:
    wanted: Any = getattr(config, "image_size", None) or preprocessor.get("crop_size") or preprocessor.get("size")
    if isinstance(wanted, Mapping):
        sides: Any = [wanted.get(name) or wanted.get("shortest_edge") for name in ("height", "width")]
        return (sides[0], sides[1]) if all(sides) else None
    if isinstance(wanted, int):
        return wanted, wanted
    return (wanted[0], wanted[1]) if wanted else None
