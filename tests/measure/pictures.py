"""Small images, samplers and features for tests of the image metrics."""

import numpy as np
import torch

from di4c_lm.data.images.images import ImageSet
from di4c_lm.measure.images.features import FeatureNet
from di4c_lm.measure.images.report import ImageSampler

CLASSES = ("dark", "bright", "striped")


def picture_bytes(labels: np.ndarray, seed: int) -> np.ndarray:
    """uint8 (N, 6, 6, 1), each of its class with noise of its own."""
    rng = np.random.default_rng(seed)
    stripes = np.where(np.arange(6) % 2, 220, 30)[None, :, None] * np.ones((6, 6, 1))
    base = np.stack([np.full((6, 6, 1), 40), np.full((6, 6, 1), 200), stripes])
    return np.clip(base[labels] + rng.normal(0, 25, (len(labels), 6, 6, 1)), 0, 255).astype(np.uint8)


def real_images(count: int, seed: int) -> ImageSet:
    labels = np.arange(count) % len(CLASSES)
    return ImageSet(images=picture_bytes(labels, seed), labels=labels, classes=CLASSES, name=f"pictures {seed}")


def painter(
    name: str, *, fault: float = 0.0, num_classes: int = 0, shape: tuple[int, int, int] = (6, 6, 1)
) -> ImageSampler:
    """Samples the real images' distribution, blurred towards grey by 1 / steps times `fault`."""

    def sample(num: int, steps: int, seed: int, labels: np.ndarray | None) -> tuple[np.ndarray, float]:
        chosen = np.arange(num) % len(CLASSES) if labels is None else labels
        images = picture_bytes(chosen, 1000 * seed + steps)
        weight = fault / steps
        blurred = (images * (1 - weight) + 128 * weight).astype(np.uint8)
        height, width, channels = shape
        return np.broadcast_to(blurred, (num, 6, 6, channels))[:, :height, :width], float(2 * steps)

    facts = {"sampler": "painter", "guidance": 1.5}
    return ImageSampler(name=name, sample=sample, facts=facts, num_classes=num_classes)


def projection(num_classes: int = 3) -> FeatureNet:
    """Four fixed numbers of an image, and probabilities of as many classes."""
    weight = torch.randn(36, 4 + num_classes, generator=torch.Generator().manual_seed(0)) / 6

    def forward(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = (planes.flatten(1).float() / 64) @ weight
        return found[:, :4], found[:, 4:]

    return FeatureNet(forward, {"name": "projection", "kind": "random", "sha256": "0" * 64}, batch_size=32)
