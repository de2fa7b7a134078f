"""The features that need no download: the last hidden layer of a small convolutional classifier, trained here and cached."""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from di4c_lm.core.cache import Cache, key_of
from di4c_lm.core.files import read_json, save_tensors, write_json
from di4c_lm.core.settings import positive
from di4c_lm.core.terminal import progress_bar
from di4c_lm.data.images.images import ImageSet, Split
from di4c_lm.measure.images.features import FeatureNet
from di4c_lm.measure.render.manifest import weights_hash

_FORMAT = 3  # of the cache's key: a change in how classifiers are trained raises it
_log = logging.getLogger(__name__)
NOTE = "features of a small classifier trained on these images: not comparable with published FIDs"


@final
@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How the classifier is trained. `steps` of `batch_size` images; `features` is F, the width of the layer that is read."""

    features: int = 64
    steps: int = 300
    batch_size: int = 64
    lr: float = 3e-3
    seed: int = 0

    def __post_init__(self) -> None:
        positive(self, "features", "steps", "batch_size", "lr")


@final
class Classifier(nn.Module):
    """Three or four 3 x 3 convolutions, halving the image between them while it has more than 4 rows, and a mean over pixels."""

    def __init__(self, channels: int, num_classes: int, features: int) -> None:
        super().__init__()
        widths = (channels, max(8, features // 2), features, features, features)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.head = nn.Linear(features, num_classes)

    def forward(self, planes: UInt8[Tensor, "n C H W"]) -> tuple[Float[Tensor, "n F"], Float[Tensor, "n K"]]:
        """Features and logits of images of 0..255."""
        hidden = planes.float() / 127.5 - 1
        for layer in self.layers:
            hidden = layer(hidden)
            if min(hidden.shape[2:]) > 4:
                hidden = F.max_pool2d(hidden, 2)
        features = hidden.mean((2, 3))
        return features, self.head(features)


def classifier_features(
    images: Split,
    *,
    cache_dir: Path,
    config: ClassifierConfig | None = None,
    batch_size: int = 256,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> FeatureNet:
    """The classifier of the training images, trained now or taken from the cache for the same images, labels and settings.

    Its facts say how it was trained, its share of right answers on the images and on the validation set, and that it is no Inception.
    Seeded by `config.seed`; the global generators are left as they were. Raises `ValueError` for images of fewer than 2 classes.
    """
    from safetensors.torch import load_file

    config, train = config or ClassifierConfig(), images.train
    present = len(np.unique(train.labels))
    if present < 2:
        raise ValueError(
            f"features='classifier' needs images of at least 2 classes, found {present}: "
            "name a network by features=<folder>, or take features=inception"
        )

    def make(folder: Path) -> None:
        _log.info("training a classifier on %d images, for features: %s", len(train), path)
        network, facts = _trained(images, config, progress=progress, device=device)
        save_tensors(folder / "model.safetensors", network.state_dict())
        write_json(folder / "classifier.json", facts)

    cache, key = Cache(cache_dir), key_of(_FORMAT, asdict(config), train.fingerprint)
    path = cache.path("classifiers", key)
    _log.info("classifier: %s", path)
    cache.entry("classifiers", key, make)
    network = _fresh(train, config)
    network.load_state_dict(load_file(path / "model.safetensors"))
    network.eval().requires_grad_(False).to(device)
    identity = {"name": "classifier", "kind": NOTE, "sha256": weights_hash(path)}
    return FeatureNet(
        network, {**identity, **read_json(path / "classifier.json")}, batch_size=batch_size, device=device
    )


def _fresh(images: ImageSet, config: ClassifierConfig) -> Classifier:
    """With weights sampled from `config.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Classifier(images.shape[2], len(images.classes), config.features)


def _trained(
    images: Split, config: ClassifierConfig, *, progress: bool, device: torch.device | str
) -> tuple[Classifier, dict[str, Any]]:
    start = time.perf_counter()
    planes_NCHW = torch.from_numpy(np.ascontiguousarray(images.train.as_bytes().transpose(0, 3, 1, 2)))
    labels_N = torch.from_numpy(images.train.labels)
    rng = torch.Generator().manual_seed(config.seed)
    network = _fresh(images.train, config).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr, total_steps=config.steps + 1, pct_start=0.2, cycle_momentum=False
    )
    for _ in progress_bar(range(config.steps), desc="classifier", unit="step", disable=not progress, leave=False):
        chosen_B = torch.randint(len(planes_NCHW), (config.batch_size,), generator=rng)
        batch = _shifted(planes_NCHW[chosen_B], rng)
        _, logits = network(batch.to(device))
        loss = F.cross_entropy(logits, labels_N[chosen_B].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    net = FeatureNet(network, {}, batch_size=256, device=device)
    right = []
    for part in images:
        probabilities = net.embed(part.as_bytes()).probabilities
        assert probabilities is not None
        right.append(float((probabilities.argmax(1) == part.labels).mean()))
    facts = {
        "config": asdict(config),
        "num_images": len(images.train),
        "accuracy": right[0],
        "held_out_accuracy": right[1],
        "seconds": round(time.perf_counter() - start, 1),
    }
    return network, facts


def _shifted(planes: UInt8[Tensor, "B C H W"], rng: torch.Generator) -> UInt8[Tensor, "B C H W"]:
    """A batch moved by up to an eighth of its sides, the edge repeated."""
    height, width = planes.shape[2:]
    most = max(1, min(height, width) // 8)
    down, right = torch.randint(-most, most + 1, (2,), generator=rng).tolist()
    rows, columns = (
        (torch.arange(extent) + by).clamp(0, extent - 1) for extent, by in ((height, down), (width, right))
    )
    return planes[:, :, rows][:, :, :, columns]
