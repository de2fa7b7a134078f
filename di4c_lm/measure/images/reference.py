"""What is kept of the images that samples are compared with: statistics that can be saved, loaded and identified by a hash."""

import functools
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float32, Int
from numpy import ndarray

from di4c_lm.core.files import whole_file
from di4c_lm.data.images.images import ImageSet
from di4c_lm.measure.images.features import FeatureNet
from di4c_lm.measure.statistics.frechet import Moments, moments


def some(count: int, limit: int) -> Int[ndarray, " n"]:
    """At most `limit` of the numbers 0..count - 1, always the same ones, in order; at random, since classes may come in turns."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:limit])


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Moments of the features of real images, and the features of at most some of them; None where a file holds moments alone.

    `facts`, JSON-ready, name the images and the network: at least `images` and `network` (SHA-256 of its weights, None where unknown).
    """

    moments: Moments
    features: Float32[ndarray, "M F"] | None
    facts: Mapping[str, Any]

    @functools.cached_property
    def sha256(self) -> str:
        """Of the numbers, not of the facts."""
        digest = hashlib.sha256(str(self.moments.count).encode())
        for array in (self.moments.mean, self.moments.covariance, self.features):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def described(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {**self.facts, "sha256": self.sha256, "count": self.moments.count}

    def save(self, path: Path) -> None:
        """Writes an .npz file, whole or not at all."""
        arrays: dict[str, Any] = {
            "mu": self.moments.mean,
            "sigma": self.moments.covariance,
            "count": np.array(self.moments.count),
        }
        if self.features is not None:
            arrays["features"] = self.features
        with whole_file(path) as beside, beside.open("wb") as file:
            np.savez(file, **arrays, facts=np.array(json.dumps(dict(self.facts))))


def find_reference(net: FeatureNet, images: ImageSet, *, path: Path | None, keep: int) -> Reference:
    """What the file at `path` holds; else statistics of `images` with the features of at most `keep` of them, then written there.

    Raises `ValueError` as `load_reference` does.
    """
    network = net.facts["sha256"]
    if path is not None and path.exists():
        width = net.embed(images.as_bytes()[:1]).features.shape[1]
        return load_reference(path, width=width, network=network)
    features = net.embed(images.as_bytes()).features
    kept = features[some(len(features), keep)].astype(np.float32)
    facts = {"name": images.name, "images": images.fingerprint, "network": network}
    made = Reference(moments=moments(features), features=kept, facts=facts)
    if path is not None:
        made.save(path)
    return made


def load_reference(path: Path, *, width: int, network: str | None) -> Reference:
    """A file written by `Reference.save`, or one with `mu` and `sigma`, as FID's tools share them. Nothing pickled is read.

    Raises `ValueError` with the file's name: damaged, without these arrays, of another width than the features in use, of another network.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {
                name: archive[name] for name in ("mu", "sigma", "count", "features", "facts") if name in archive.files
            }
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"reference={str(path)!r}: a damaged .npz file or none: {error}") from error
    absent = [name for name in ("mu", "sigma") if name not in found]
    if absent:
        raise ValueError(
            f"reference={str(path)!r}: expected the arrays mu and sigma, found no {' and no '.join(absent)}"
        )
    if found["mu"].shape != (width,) or found["sigma"].shape != (width, width):
        shapes = f"{found['mu'].shape} and {found['sigma'].shape}"
        raise ValueError(f"reference={str(path)!r}: expected moments of {width} features, found {shapes}")
    facts = (
        json.loads(str(found["facts"])) if "facts" in found else {"name": str(path), "images": None, "network": None}
    )
    if None not in (network, facts["network"]) and network != facts["network"]:
        raise ValueError(
            f"reference={str(path)!r}: made with a network of SHA-256 {facts['network'][:12]}, in use is {str(network)[:12]}"
        )
    made = Moments(
        mean=found["mu"].astype(np.float64),
        covariance=found["sigma"].astype(np.float64),
        count=int(found.get("count", 0)),
    )
    return Reference(moments=made, features=found.get("features"), facts=facts)
