"""Image samplers at several step counts, beside held-out images: what `eval/images.py` and the end of an image run both measure.

It knows samplers by a protocol and nothing of our models. Axes: N images, H rows, W columns, C channels.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

import numpy as np
from jaxtyping import Int64, UInt8
from numpy import ndarray
from tqdm import tqdm

from di4c_lm.measure.images.classifier import classifier_features
from di4c_lm.measure.images.features import Embedded, FeatureNet, folder_features, inception_features
from di4c_lm.measure.images.reference import Reference, load_reference, reference_of
from di4c_lm.measure.images.samplers import ImageDraw, ImageSampler, RealImages
from di4c_lm.measure.images.scores import cover, inception_score, kernel_distance, some
from di4c_lm.measure.images.settings import ImageReportConfig
from di4c_lm.measure.statistics.frechet import extrapolated_frechet, linearised_frechet
from di4c_lm.measure.statistics.linearised import Linearised, difference_of, interval_of, mean_of

Row: TypeAlias = dict[str, Any]
DATA = "data"
COMPARED = ("fid", "inception_score")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageReport:
    """`rows`: one a model and step count. `shown`: the first images of each. `features`, `reference`: which they were.

    `comparisons`: FID and Inception Score of each other model less the first one's, at as many steps and at twice as many.
    """

    rows: list[Row]
    comparisons: list[Row]
    shown: dict[tuple[str, int], UInt8[ndarray, "N H W C"]]
    features: Mapping[str, Any]
    reference: Mapping[str, Any]


def image_report(
    samplers: Sequence[ImageSampler],
    train: RealImages,
    held_out: RealImages,
    settings: ImageReportConfig,
    *,
    cache_dir: Path,
    device: str = "cpu",
    progress: bool = True,
) -> ImageReport:
    """Measure every sampler at every step count, and real images. The first sampler, as a rule the teacher, is the one compared with.

    A row holds model, steps, nfe, num_samples, seconds; fid, inception_score, precision, recall, density, coverage, label_agreement (share
    of images that the classifier takes for the class asked for), each with `_low` and `_high` of a 95 % interval; fid_infinity (the FID
    that infinitely many samples would have); kid with its interval and kid_p, of a permutation test of samples against real images. What
    the features or the reference cannot give is None. The row "data" has steps 0: real images that are not in the reference. Intervals
    hold the reference fixed and resample the images of the row; those of recall and coverage resample the reference's.

    Raises `ValueError`: two samplers of one name or one called "data", images of another shape than the real ones, features that cannot be
    had, a reference that does not fit.
    """
    names = [sampler.name for sampler in samplers]
    if DATA in names or len(set(names)) != len(names):
        raise ValueError(f"samplers need names of their own, none of them {DATA!r}: found {names}")
    net = feature_net(train, held_out, settings, cache_dir=cache_dir, device=device, progress=progress)
    against, others = (train, held_out) if settings.against == "train" else (held_out, train)
    bench = _Bench(net=net, reference=_reference(net, against, settings), settings=settings)
    rest = some(len(others.labels), settings.each_seed * len(settings.seeds))
    real = ImageDraw(images=others.as_bytes()[rest], nfe=0.0)
    found = {(DATA, 0): bench.measured(real, others.labels[rest], groups=1)}
    rows = [_row(DATA, 0, real, found[DATA, 0], settings, 0.0)]
    shown = {(DATA, 0): real.images[some(len(rest), settings.grid)]}
    cells = [(sampler, steps) for sampler in samplers for steps in settings.steps]
    bar = tqdm(cells, desc="evaluating", unit="row", disable=not progress)
    for sampler, steps in bar:
        bar.set_postfix_str(f"{sampler.name}, {steps} steps")
        start = time.perf_counter()
        draw, labels = _draw(sampler, steps, settings, real.images.shape[1:])
        seconds = time.perf_counter() - start
        cell = (sampler.name, steps)
        found[cell] = bench.measured(draw, labels, groups=len(settings.seeds))
        rows.append(_row(*cell, draw, found[cell], settings, seconds))
        shown[cell] = draw.images[: settings.grid]
    return ImageReport(
        rows=rows,
        comparisons=_comparisons(found, names, settings),
        shown=shown,
        features=net.facts,
        reference=bench.reference.described(),
    )


def feature_net(
    train: RealImages,
    held_out: RealImages,
    settings: ImageReportConfig,
    *,
    cache_dir: Path,
    device: str = "cpu",
    progress: bool = True,
) -> FeatureNet:
    """The network that `settings.features` names. Raises `ValueError` as its makers do."""
    if settings.features == "inception":
        return inception_features(device=device)
    if settings.features != "classifier":
        path = Path(settings.features).expanduser()
        return (inception_features if path.suffix == ".pth" else folder_features)(path, device=device)
    return classifier_features(
        train.as_bytes(),
        train.labels,
        len(train.classes),
        cache_dir=cache_dir,
        held_out=(held_out.as_bytes(), held_out.labels),
        device=device,
        progress=progress,
    )


def _reference(net: FeatureNet, images: RealImages, settings: ImageReportConfig) -> Reference:
    network = net.facts["sha256"]
    path = Path(settings.reference).expanduser() if settings.reference else None
    if path is not None and path.exists():
        width = net.embed(images.as_bytes()[:1]).features.shape[1]
        return load_reference(path, width=width, network=network)
    embedded = net.embed(images.as_bytes())
    keep = max(settings.neighbours, settings.kernel_images)
    made = reference_of(embedded, keep=keep, images=images.fingerprint, name=images.name, network=network)
    if path is not None:
        made.save(path)
    return made


def _draw(
    sampler: ImageSampler, steps: int, settings: ImageReportConfig, shape: tuple[int, ...]
) -> tuple[ImageDraw, Int64[ndarray, " N"] | None]:
    """The samples of all seeds in turn; classes are asked for evenly."""
    count, images, nfe = settings.each_seed, [], []
    labels = np.arange(count, dtype=np.int64) % sampler.num_classes if sampler.num_classes else None
    for seed in settings.seeds:
        draw = sampler.sample(count, steps, seed, labels)
        if draw.images.shape != (count, *shape):
            raise ValueError(
                f"sampler {sampler.name!r} at {steps} steps gave images of shape {draw.images.shape}, expected {(count, *shape)}"
            )
        images.append(draw.images)
        nfe.append(draw.nfe)
    whole = ImageDraw(images=np.concatenate(images), nfe=float(np.mean(nfe)))
    return whole, None if labels is None else np.tile(labels, len(settings.seeds))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Bench:
    net: FeatureNet
    reference: Reference
    settings: ImageReportConfig

    def measured(self, draw: ImageDraw, labels: Int64[ndarray, " N"] | None, *, groups: int) -> Row:
        """The statistics of a row by name, linearised where they have an interval of that kind."""
        embedded = self.net.embed(draw.images)
        fid = linearised_frechet(embedded.features, self.reference.moments, groups=groups)
        found: Row = {"fid": fid, "fid_infinity": extrapolated_frechet(embedded.features, self.reference.moments)}
        found |= self._of_classes(embedded, labels, groups)
        return found | self._of_neighbours(embedded, groups)

    def _of_classes(self, embedded: Embedded, labels: Int64[ndarray, " N"] | None, groups: int) -> Row:
        if embedded.probabilities is None:
            return {"inception_score": None, "label_agreement": None}
        score = inception_score(embedded.probabilities, groups=groups)
        own_classes = (
            "held_out_accuracy" in self.net.facts
        )  # a classifier of these images, whose classes are the samplers'
        if labels is None or not own_classes:
            return {"inception_score": score, "label_agreement": None}
        right_N = (embedded.probabilities.argmax(1) == labels).astype(np.float64)
        return {"inception_score": score, "label_agreement": mean_of(right_N, groups=groups)}

    def _of_neighbours(self, embedded: Embedded, groups: int) -> Row:
        settings, real = self.settings, self.reference.features
        if real is None:
            return dict.fromkeys(("precision", "recall", "density", "coverage", "kid"))
        own = embedded.features
        near = cover(
            own[_some_of_each(len(own), settings.neighbours, groups)],
            real[some(len(real), settings.neighbours)],
            k_manifold=settings.k_manifold,
            k_density=settings.k_density,
            groups=groups,
        )
        found: Row = {name: getattr(near, name) for name in ("precision", "recall", "density", "coverage")}
        if settings.permutations == 0:
            return found | {"kid": None}
        kid = kernel_distance(
            own[_some_of_each(len(own), settings.kernel_images, groups)],
            real[some(len(real), settings.kernel_images)],
            permutations=settings.permutations,
            resamples=settings.bootstrap,
            seed=settings.seeds[0],
            groups=groups,
        )
        return found | {"kid": kid}


def _some_of_each(count: int, limit: int, groups: int) -> ndarray:
    """At most `limit` numbers, as many of each of `groups` equal blocks."""
    each = count // groups
    chosen = some(each, max(2, limit // groups))
    return (np.arange(groups)[:, None] * each + chosen).reshape(-1)


def _row(name: str, steps: int, draw: ImageDraw, found: Row, settings: ImageReportConfig, seconds: float) -> Row:
    row: Row = {"model": name, "steps": steps, "nfe": draw.nfe, "num_samples": len(draw.images)}
    for metric, value in found.items():
        if metric == "fid_infinity":
            row[metric] = value
            continue
        if isinstance(value, Linearised):
            value = interval_of(value, resamples=settings.bootstrap, seed=settings.seeds[0])
        parts = ("estimate", "low", "high")
        row |= {
            f"{metric}{end}": getattr(value, part, None) for end, part in zip(("", "_low", "_high"), parts, strict=True)
        }
    row["kid_p"] = getattr(found["kid"], "p_value", None)
    return row | {"seconds": round(seconds, 3)}


def _comparisons(found: Mapping[tuple[str, int], Row], names: list[str], settings: ImageReportConfig) -> list[Row]:
    """Each other model at K steps less the first one at K, and at 2 K where that was measured."""
    rows = []
    for name in names[1:]:
        for steps, base_steps in ((k, n) for k in settings.steps for n in (k, 2 * k) if n in settings.steps):
            for metric in COMPARED:
                a, b = found[name, steps][metric], found[names[0], base_steps][metric]
                if a is None:
                    continue
                difference = difference_of(a, b, resamples=settings.bootstrap, seed=settings.seeds[0])
                rows.append(
                    {
                        "metric": metric,
                        "of": name,
                        "steps": steps,
                        "minus": names[0],
                        "minus_steps": base_steps,
                        "difference": difference.estimate,
                        "difference_low": difference.low,
                        "difference_high": difference.high,
                        "p_value": difference.p_value,
                    }
                )
    return rows
